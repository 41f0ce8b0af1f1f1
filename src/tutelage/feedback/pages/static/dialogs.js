/** Short questions in a modal dialog, by keyboard: why skip, what to flag, what to say about a part, which keys there are. */
import { h, kbd } from "./dom.js";

/** Shows a form in a dialog. Resolves to what `read` gives when it is sent, to null when it is left. */
function ask(title, content, { send = "OK", read, first, keys = {} }) {
  return new Promise((resolve) => {
    let answer = null;
    const submit = () => {
      const value = read();
      if (value === null) return;
      answer = value;
      dialog.close();
      resolve(answer); // at once: the close event comes later than the next key may
    };
    const dialog = h(
      "dialog",
      { "aria-label": title, class: "ask" },
      h("form", { method: "dialog", onsubmit: (event) => (event.preventDefault(), submit()) },
        h("h2", {}, title), content,
        h("div", { class: "dialog-actions" }, h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel ", kbd("Esc")), h("button", { type: "submit", class: "primary" }, send, " ", kbd("⏎")))),
    );
    dialog.addEventListener("keydown", (event) => {
      const typing = event.target.matches("textarea, input[type=text]");
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey || !event.target.matches("textarea, button"))) {
        event.preventDefault();
        submit();
      } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key]) {
        event.preventDefault();
        keys[event.key]();
      }
      event.stopPropagation();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    first?.focus();
  });
}

/** Check boxes or radio buttons that the digits press. */
function options(type, names, chosen = []) {
  const inputs = names.map((name, i) => h("input", { type, name: "option", id: `option-${i}`, value: name }));
  inputs.forEach((input) => (input.checked = chosen.includes(input.value)));
  const element = h("ul", { class: "options" }, names.map((name, i) => h("li", {}, inputs[i], h("label", { for: `option-${i}` }, name), i < 9 ? kbd(String(i + 1)) : null)));
  const press = (i) => () => {
    inputs[i].click();
    inputs[i].focus();
  };
  return { element, inputs, keys: Object.fromEntries(names.slice(0, 9).map((_, i) => [String(i + 1), press(i)])), value: () => inputs.filter((input) => input.checked).map((input) => input.value) };
}

const problem = () => h("p", { class: "error", role: "alert" });

/** Why this item is skipped; "other" wants a word. */
export function skipDialog(reasons) {
  const list = options("radio", reasons);
  const more = h("input", { type: "text", id: "skip-more", maxlength: 200, dir: "auto" });
  const wrong = problem();
  const read = () => {
    const [reason] = list.value();
    if (!reason) wrong.textContent = "Choose a reason";
    else if (reason === "other" && !more.value.trim()) wrong.textContent = "Say why";
    else return more.value.trim() ? `${reason}: ${more.value.trim()}` : reason;
    if (reason) more.focus();
    return null;
  };
  return ask("Skip this item: why?", [list.element, h("label", { for: "skip-more" }, "In your words"), more, wrong], { send: "Skip", read, first: list.inputs[0], keys: list.keys });
}

/** Problems with the item, beside the judgment. An empty choice takes the flag back. */
export function flagDialog(tags, flag) {
  const list = options("checkbox", tags, flag?.tags);
  const note = h("textarea", { id: "flag-note", rows: 2, maxlength: 2000, dir: "auto" });
  note.value = flag?.note ?? "";
  const wrong = problem();
  const read = () => {
    if (note.value.trim() && !list.value().length) {
      wrong.textContent = "Choose at least one";
      return null;
    }
    return { tags: list.value(), note: note.value.trim() };
  };
  return ask("Flag a problem", [list.element, h("label", { for: "flag-note" }, "Note"), note, wrong], { send: "Flag", read, first: list.inputs[0], keys: list.keys });
}

/** A tag and a note on one part of an answer. */
export function spanDialog(quote, tags) {
  const list = options("radio", tags);
  const note = h("textarea", { id: "span-note", rows: 2, maxlength: 5000, dir: "auto" });
  const wrong = problem();
  const read = () => {
    const [tag] = list.value();
    if (!tag) wrong.textContent = "Choose what it is";
    return tag ? { tag, note: note.value.trim() } : null;
  };
  const shown = quote.length > 200 ? quote.slice(0, 197) + "…" : quote;
  return ask("Comment on a part", [h("blockquote", { dir: "auto" }, shown), list.element, h("label", { for: "span-note" }, "Note"), note, wrong], { send: "Save", read, first: list.inputs[0], keys: list.keys });
}

const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Enter: "⏎", Escape: "Esc" };
export const keyName = (key) =>
  key.split("+").map((part) => SIGNS[part] ?? (part.length === 1 ? part.toUpperCase() : part)).join(" + ");

/** Every key of this task. sections: [[title, [{keys, label, group}]]]. */
export function helpDialog(sections) {
  if (document.querySelector("dialog.help")) return;
  const row = ({ keys, label, group }) => h("tr", {}, h("th", { scope: "row" }, group ? h("kbd", {}, group) : keys.flatMap((key, i) => [i ? " or " : null, h("kbd", {}, keyName(key))])), h("td", {}, label));
  const once = (list) => list.filter((each, i) => !each.group || list.findIndex((other) => other.group === each.group) === i);
  const dialog = h("dialog", { class: "help", "aria-label": "Keys" },
    h("div", { class: "card-head" }, h("h2", {}, "Keys"), h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close ", kbd("Esc"))),
    h("div", { class: "help-sections" }, sections.map(([title, list]) => h("section", {}, h("h3", {}, title), h("table", {}, h("tbody", {}, once(list).map(row)))))));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "?") dialog.close();
    event.stopPropagation();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
