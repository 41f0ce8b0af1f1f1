/** The answer that a person writes: a demonstration. Saved while it is written. */
import { h, kbd } from "../dom.js";
import { mediaOf, media } from "../texts.js";

/** A text field that grows, with its length in words below it. */
export function field(id, label, { hint = "", rows = 3, key = null, changed, placeholder = "" }) {
  const length = h("span", { class: "length", id: `${id}-length` });
  const area = h("textarea", { id, rows, dir: "auto", spellcheck: "true", placeholder, "aria-describedby": `${id}-length`, maxlength: 100_000, oninput: () => grow(true) });
  function grow(told) {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
    const count = area.value.trim() ? area.value.trim().split(/\s+/).length : 0;
    length.textContent = `${count} ${count === 1 ? "word" : "words"}, ${[...area.value].length} characters`;
    if (told) changed(null);
  }
  const set = (value) => {
    area.value = value;
    grow(false);
  };
  set("");
  const element = h("div", { class: "field" }, h("div", { class: "field-head" }, h("label", { for: id }, label, hint ? h("span", { class: "muted" }, ` ${hint}`) : null), key ? kbd(key) : null), area, length);
  return { element, area, set, grow: () => grow(false) };
}

export function demonstration(item, changed) {
  const written = field("demonstration", "Your answer", { rows: 8, key: "E", changed, hint: "as the assistant should have written it" });
  const shown = (item.responses ?? []).map((_, i) => media(mediaOf(item, i), "Segment")).filter(Boolean);
  return {
    answers: h("div", { class: "answers one" }, shown, h("div", { class: "card" }, written.element)),
    bar: h("div", { class: "choices" }, h("span", { class: "muted hint" }, "Enter starts a new line. ", kbd("Ctrl"), " ", kbd("Enter"), " submits, ", kbd("Esc"), " leaves the text.")),
    keys: [{ keys: ["e"], label: "Write", run: () => written.area.focus() }],
    shown: () => {
      written.grow();
      written.area.focus({ preventScroll: true });
    },
    missing: () => (written.area.value.trim() ? null : "Write an answer first"),
    payload: () => ({ text: written.area.value }),
    restore: (payload) => written.set(payload.text ?? ""),
  };
}
