/** Statements about one answer, each true or not: check boxes with number keys. */
import { h } from "../dom.js";

const KEYS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];

/** names: [str]. Gives the fieldset, its keys, value() and restore([str]). */
export function flags(names, changed) {
  const boxes = names.map((name, i) =>
    h("input", { type: "checkbox", id: `flag-${i}`, value: name, onchange: (event) => changed(`${name}: ${event.target.checked ? "yes" : "no"}`) }),
  );
  const rows = names.map((name, i) =>
    h("li", {}, boxes[i], h("label", { for: `flag-${i}` }, name), i < KEYS.length ? h("kbd", { "aria-hidden": "true" }, "⇧" + KEYS[i]) : null),
  );
  const move = (by) => () => boxes[(Math.max(0, boxes.indexOf(document.activeElement)) + by + boxes.length) % boxes.length].focus();
  return {
    element: names.length ? h("fieldset", { class: "flags card" }, h("legend", {}, "What is true of it? ", h("span", { class: "muted" }, "any number")), h("ul", {}, rows)) : null,
    keys: names.length
      ? [
          ...names.slice(0, KEYS.length).map((_, i) => ({ keys: [`Shift+${KEYS[i]}`], label: "A statement, on or off", run: () => boxes[i].click(), group: `Shift+1 – ${KEYS[Math.min(names.length, KEYS.length) - 1]}` })),
          { keys: ["x"], label: "Go to the statements (Space: on or off)", run: () => boxes[0].focus() },
          { keys: ["ArrowDown"], label: "The next statement", run: move(1), when: () => boxes.includes(document.activeElement) },
          { keys: ["ArrowUp"], label: "The statement before", run: move(-1), when: () => boxes.includes(document.activeElement) },
        ]
      : [],
    value: () => boxes.filter((box) => box.checked).map((box) => box.value),
    restore: (values) => boxes.forEach((box) => (box.checked = (values ?? []).includes(box.value))),
  };
}
