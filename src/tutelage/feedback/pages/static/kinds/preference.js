/** Choose the better of two: with strength where the project asks for it, a tie, both bad. */
import { h, kbd } from "../dom.js";
import { answer } from "../texts.js";

const STRENGTHS = ["", "Slightly better", "Clearly better", "Much better"];
const SHORT = ["", "Slightly", "Clearly", "Much"];
const NAMES = { first: "Answer 1", second: "Answer 2", tie: "About equal", both_bad: "Both bad" };

export function preference(item, changed) {
  const options = item.options;
  let chosen = null;
  const answers = item.responses.map((_, i) => answer(item, i, NAMES[i ? "second" : "first"]));

  function pick(choice, strength = null) {
    chosen = { choice, strength: choice === "first" || choice === "second" ? strength : null };
    show();
    changed(chosen.strength ? `${NAMES[choice]}: ${STRENGTHS[chosen.strength].toLowerCase()}` : NAMES[choice]);
  }
  /** The same side once more makes it stronger. */
  const side = (choice) => () => pick(choice, options.strength ? Math.min(3, chosen?.choice === choice ? (chosen.strength ?? 0) + 1 : 1) : null);
  const strongly = (choice) => () => pick(choice, options.strength ? 3 : null);

  const button = (choice, strength, keys, label, extra = "") =>
    h("button", { type: "button", class: `choice ${extra}`, "data-choice": choice, "data-strength": strength, "aria-pressed": "false", onclick: () => pick(choice, strength) }, h("span", {}, label), kbd(...keys));
  const oneSide = (choice, n) =>
    options.strength
      ? [3, 2, 1].map((s) => button(choice, s, s === 1 ? [n] : s === 3 ? ["⇧" + n] : [], h("span", {}, h("span", { class: "visually-hidden" }, `${NAMES[choice]}: `), SHORT[s], h("span", { class: "visually-hidden" }, " better")), `strength-${s}`))
      : [button(choice, null, [n], `${NAMES[choice]} is better`, "side")];
  const tie = options.ties === false ? [] : [button("tie", null, ["0"], NAMES.tie, "tie")];
  const bad = options.both_bad === false ? [] : [button("both_bad", null, ["B"], NAMES.both_bad, "bad")];
  const group = (name, buttons) => h("div", { class: "choice-side", role: "group", "aria-label": name }, options.strength ? h("span", { class: "side-name", "aria-hidden": "true" }, `${name} is better`) : null, h("div", { class: "choice-row" }, buttons));
  const bar = h(
    "div",
    { class: `choices preference-choices${options.strength ? " graded" : ""}`, role: "group", "aria-label": "Which answer is better?" },
    group("Answer 1", oneSide("first", "1")),
    tie.length || bad.length ? h("div", { class: "choice-side middle" }, h("div", { class: "choice-row" }, tie, bad)) : null,
    group("Answer 2", oneSide("second", "2").reverse()),
  );

  function show() {
    for (const each of bar.querySelectorAll("[data-choice]"))
      each.setAttribute("aria-pressed", String(each.dataset.choice === chosen?.choice && (each.dataset.strength ?? null) == (chosen?.strength ?? null)));
    answers.forEach((element, i) => {
      const mine = chosen?.choice === (i ? "second" : "first");
      element.classList.toggle("chosen", mine);
      element.classList.toggle("rejected", chosen?.choice === "both_bad");
      element.querySelector(".verdict").textContent = mine ? `✓ ${chosen.strength ? STRENGTHS[chosen.strength] : "Better"}` : { tie: "= About equal", both_bad: "✗ Bad" }[chosen?.choice] ?? "";
    });
  }

  answers.forEach((element, i) => {
    element.addEventListener("click", (event) => {
      if (event.target.closest("a, button, video") || String(getSelection())) return;
      side(i ? "second" : "first")();
    });
  });

  const again = options.strength ? "; again: stronger" : "";
  return {
    answers: h("div", { class: "answers two" }, answers),
    bar,
    diff: item.responses.length === 2,
    keys: [
      { keys: ["1", "ArrowLeft"], label: `Answer 1 is better${again}`, run: side("first") },
      { keys: ["2", "ArrowRight"], label: `Answer 2 is better${again}`, run: side("second") },
      options.strength && { keys: ["Shift+1", "Shift+ArrowLeft"], label: "Answer 1 is much better", run: strongly("first") },
      options.strength && { keys: ["Shift+2", "Shift+ArrowRight"], label: "Answer 2 is much better", run: strongly("second") },
      tie.length && { keys: ["0", "="], label: "About equal", run: () => pick("tie") },
      bad.length && { keys: ["b"], label: "Both bad", run: () => pick("both_bad") },
    ].filter(Boolean),
    missing: () => (chosen ? null : "Choose an answer first"),
    payload: () => ({ ...chosen }),
    restore(payload) {
      if (!payload.choice) return;
      chosen = { choice: payload.choice, strength: payload.strength ?? null };
      show();
    },
  };
}
