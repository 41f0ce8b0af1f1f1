/** One answer judged alone: a number on a scale with anchors, or yes or no; with statements to tick. */
import { h, kbd } from "../dom.js";
import { answer } from "../texts.js";
import { flags } from "./flags.js";

/** values: [{value, label, keys, name}] best shown in this order; everything else is common to ratings and yes/no. */
function direct(item, changed, values, { question, scale }) {
  let value = null;
  const statements = flags(item.options.flags ?? [], changed);
  function pick(each) {
    value = each.value;
    show();
    changed(each.name);
  }
  const buttons = values.map((each) =>
    h("button", { type: "button", class: "choice", "data-choice": String(each.value), "aria-pressed": "false", onclick: () => pick(each) }, each.label, each.hint ? kbd(each.hint) : null),
  );
  function show() {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(values[i].value === value)));
  }
  const step = (by) => () => {
    const from = values.findIndex((each) => each.value === value);
    pick(values[from === -1 ? (by > 0 ? 0 : values.length - 1) : Math.max(0, Math.min(values.length - 1, from + by))]);
  };
  const element = answer(item, 0, "Answer");
  return {
    answers: h("div", { class: "answers one" }, element, statements.element),
    bar: h("div", { class: `choices direct-choices ${scale ? "scale" : ""}`, role: "group", "aria-label": question }, h("span", { class: "question" }, question), h("div", { class: "choice-row" }, buttons)),
    keys: [
      ...values.map((each) => ({ keys: each.keys, label: each.help, group: each.group, run: () => pick(each) })),
      { keys: ["ArrowLeft"], label: "One to the left", run: step(-1) },
      { keys: ["ArrowRight"], label: "One to the right", run: step(1) },
      ...statements.keys,
    ],
    missing: () => (value === null ? (scale ? "Choose a number first" : "Choose yes or no first") : null),
    payload: () => ({ value, flags: statements.value() }),
    draft: () => (value === null ? { flags: statements.value() } : { value, flags: statements.value() }),
    restore(payload) {
      value = payload.value ?? null;
      statements.restore(payload.flags);
      show();
    },
  };
}

/** Anchors are given for every number, or for the two ends. */
function anchor(anchors, index, count) {
  if (anchors.length === count) return anchors[index];
  return anchors.length === 2 && index % (count - 1) === 0 ? anchors[index ? 1 : 0] : "";
}

export function rating(item, changed) {
  const [low, high] = item.options.scale ?? [1, 7];
  const count = high - low + 1;
  const values = Array.from({ length: count }, (_, i) => {
    const [number, words] = [low + i, anchor(item.options.anchors ?? [], i, count)];
    const key = number >= 0 && number <= 9 ? String(number) : number === 10 && low > 0 ? "0" : null;
    return {
      value: number,
      label: [h("span", { class: "scale-number" }, String(number)), words ? h("span", { class: "anchor" }, words) : null],
      name: words ? `${number}, ${words}` : String(number),
      keys: key === null ? [] : [key],
      help: "That number",
      group: `${low} – ${Math.min(high, 9)}`,
    };
  });
  return direct(item, changed, values, { question: item.options.question ?? "How good is this answer?", scale: true });
}

export function yesno(item, changed) {
  const values = [
    { value: true, label: h("span", {}, "✓ Yes"), name: "Yes", hint: "Y", keys: ["y", "1"], help: "Yes" },
    { value: false, label: h("span", {}, "✗ No"), name: "No", hint: "N", keys: ["n", "2"], help: "No" },
  ];
  return direct(item, changed, values, { question: item.options.question ?? "Is this a good answer?", scale: false });
}
