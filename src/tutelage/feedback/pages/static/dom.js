/** Elements without markup strings; the server's sanitised HTML is rebuilt element by element from an allow-list. */

/** h("p", {class: "x", onclick: f}, "text", child): an element. A property that starts with "on" is a listener; false and null are left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const find = (id) => document.getElementById(id);
export const kbd = (...keys) => keys.map((key) => h("kbd", { "aria-hidden": "true" }, key));

const ALLOWED = new Set(
  "P BR HR H3 H4 H5 H6 STRONG EM S CODE PRE BLOCKQUOTE UL OL LI A TABLE THEAD TBODY TR TH TD INS DEL DIV SPAN".split(" "),
);
const policy = window.trustedTypes?.createPolicy("tutelage", { createHTML: (html) => html });

function copy(from, to) {
  for (const node of from.childNodes) {
    if (node.nodeType === Node.TEXT_NODE) to.append(node.data);
    if (node.nodeType !== Node.ELEMENT_NODE) continue;
    if (!ALLOWED.has(node.tagName)) {
      copy(node, to);
      continue;
    }
    const element = document.createElement(node.tagName);
    for (const name of ["align", "start"]) if (node.hasAttribute(name)) element.setAttribute(name, node.getAttribute(name));
    const address = node.getAttribute("href") ?? "";
    if (node.tagName === "A" && /^(https?:\/\/|mailto:)/i.test(address)) {
      element.href = address;
      element.rel = "noopener noreferrer nofollow";
      element.target = "_blank";
    }
    copy(node, element);
    to.append(element);
  }
  return to;
}

/** A fragment from HTML that the server has sanitised. It is parsed in a document without scripts and cut down a second time. */
export function fromHtml(html) {
  const parsed = new DOMParser().parseFromString(policy ? policy.createHTML(html) : html, "text/html");
  const fragment = copy(parsed.body, document.createDocumentFragment());
  for (const table of fragment.querySelectorAll("table")) {
    const scroll = h("div", { class: "scroll" });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  return fragment;
}

/** The raw text with bidirectional controls made visible; the text nodes together are still exactly `text`. */
export function rawText(text) {
  const parts = text.split(/([\u202a-\u202e\u2066-\u2069])/);
  return parts.map((part, i) =>
    i % 2 ? h("span", { class: "control", "data-code": "U+" + part.charCodeAt(0).toString(16).toUpperCase() }, part) : part,
  );
}

/** Says something to a screen reader, and to everyone else for a moment at the foot of the page. */
export function announce(text, { seen = true } = {}) {
  find("say").textContent = text;
  if (!seen) return;
  const toast = find("toast");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => toast.classList.remove("shown"), 3500);
}
