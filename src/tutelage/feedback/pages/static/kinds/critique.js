/** Language feedback: a comment on the whole, tagged comments on parts of the raw text, and how it should read. */
import { announce, h, kbd, rawText } from "../dom.js";
import { answer } from "../texts.js";
import { spanDialog } from "../dialogs.js";
import { field } from "./writing.js";

const TAGS = ["wrong", "unclear", "harmful", "off topic", "style", "good"];
const points = (text) => [...text].length;

/** A position in UTF-16 units, as the browser counts, from one in characters, as the records count. */
export function units(text, characters) {
  let at = 0;
  for (let n = 0; n < characters && at < text.length; n += 1) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

/** Where the selection stands inside `root`, in UTF-16 units of its text; null where there is none. */
function selected(root) {
  const selection = getSelection();
  if (!selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  if (!root.contains(range.startContainer) || !root.contains(range.endContainer)) return null;
  const before = document.createRange();
  before.setStart(root, 0);
  before.setEnd(range.startContainer, range.startOffset);
  const start = before.toString().length;
  return { start, end: start + range.toString().length };
}

/** The raw text with every span marked; where spans overlap, the mark names them all. */
function marked(text, spans) {
  const cuts = [...new Set([0, text.length, ...spans.flatMap(({ start, end }) => [units(text, start), units(text, end)])])].sort((a, b) => a - b);
  return cuts.slice(0, -1).map((from, i) => {
    const over = [...spans.keys()].filter((n) => units(text, spans[n].start) <= from && units(text, spans[n].end) >= cuts[i + 1]);
    const part = rawText(text.slice(from, cuts[i + 1]));
    return over.length ? h("mark", { class: "span", "data-numbers": over.map((n) => n + 1).join(" ") }, part) : h("span", {}, part);
  });
}

export function critique(item, changed) {
  const raw = item.responses[0].text;
  const tags = item.options.tags ?? TAGS;
  let spans = [];
  const element = answer(item, 0, "Answer");
  const paper = element.querySelector(".raw") ?? h("div", { class: "raw" });
  for (const [name, value] of Object.entries({ contenteditable: "true", role: "textbox", "aria-readonly": "true", "aria-multiline": "true", "aria-label": "The answer as it was written. Select a part and press T to comment on it.", spellcheck: "false", tabindex: "0" }))
    paper.setAttribute(name, value);
  paper.classList.add("paper");
  for (const kind of ["beforeinput", "drop", "paste", "cut"]) paper.addEventListener(kind, (event) => event.preventDefault());

  const list = h("ol", { class: "spans" });
  const whole = field("critique", "What would make it better, or why it is good", { rows: 3, key: "C", changed });
  const rewritten = field("rewrite", "How it should read", { hint: "optional", rows: 3, key: "W", changed });
  const start = h("button", { type: "button", class: "quiet small", onclick: fill }, "Start from the answer");
  function fill() {
    if (!rewritten.area.value) rewritten.set(raw);
    rewritten.area.focus();
    changed(null);
  }

  /** What was rewritten; the answer as it was is no rewriting. */
  const rewrite = () => (rewritten.area.value.trim() && rewritten.area.value !== raw ? rewritten.area.value : null);

  async function comment() {
    const range = selected(paper);
    if (!range) return announce("Select a part of the answer first: Shift and the arrow keys, or the mouse");
    const span = { start: points(raw.slice(0, range.start)), end: points(raw.slice(0, range.end)), quote: raw.slice(range.start, range.end) };
    const said = await spanDialog(span.quote, tags);
    // The dialog gave the focus back as it closed, a moment ago: who has pressed C since then is writing already.
    if (document.activeElement === document.body) paper.focus();
    if (said) edit([...spans, { ...span, ...said }], `Comment on a part: ${said.tag}`);
  }
  function edit(next, said) {
    spans = next.sort((a, b) => a.start - b.start || a.end - b.end);
    show();
    changed(said);
  }
  function show() {
    paper.replaceChildren(...marked(raw, spans));
    list.replaceChildren(
      ...spans.map((span, i) =>
        h("li", {}, h("div", {}, h("strong", {}, span.tag), " ", h("q", { dir: "auto" }, span.quote.length > 80 ? span.quote.slice(0, 77) + "…" : span.quote), span.note ? h("p", { dir: "auto" }, span.note) : null),
          h("button", { type: "button", class: "quiet small", "aria-label": `Remove comment ${i + 1}`, onclick: () => edit(spans.filter((_, n) => n !== i), "Comment removed") }, "✕")),
      ),
    );
    list.hidden = !spans.length;
  }
  show();

  return {
    answers: h("div", { class: "answers with-side" }, element,
      h("div", { class: "card writing" },
        h("div", { class: "field-head" }, h("button", { type: "button", class: "comment", onmousedown: (event) => event.preventDefault(), onclick: comment }, "Comment on the selected part"), kbd("T")),
        list, whole.element, item.options.rewrite === false ? null : [rewritten.element, start])),
    bar: h("div", { class: "choices" }, h("span", { class: "muted hint" }, kbd("Ctrl"), " ", kbd("Enter"), " submits from inside a text, ", kbd("Esc"), " leaves it.")),
    view: "raw",
    keys: [
      { keys: ["a"], label: "Go to the answer (Shift and arrows select)", run: () => paper.focus() },
      { keys: ["t"], label: "Comment on the selected part", run: comment, inside: paper },
      { keys: ["c"], label: "Write about the whole", run: () => whole.area.focus() },
      item.options.rewrite !== false && { keys: ["w"], label: "Write how it should read", run: fill },
    ].filter(Boolean),
    shown: () => [whole, rewritten].forEach((each) => each.grow()),
    missing: () => (whole.area.value.trim() || spans.length || rewrite() ? null : "Write a comment, or comment on a part, first"),
    payload: () => ({ text: whole.area.value, spans, rewrite: rewrite() }),
    restore(payload) {
      whole.set(payload.text ?? "");
      rewritten.set(payload.rewrite ?? "");
      spans = payload.spans ?? [];
      show();
    },
  };
}
