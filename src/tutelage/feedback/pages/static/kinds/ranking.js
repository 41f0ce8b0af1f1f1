/** Rank several answers: digits in reading order, letters to go to one, dragging as an extra; equal ranks tie. */
import { h, kbd } from "../dom.js";
import { answer } from "../texts.js";

export const letter = (index) => String.fromCharCode(65 + index);

/** 1 + the number of better ones, for ranks that may have gaps: [1, 3, 3, 9] -> [1, 2, 2, 4]. */
export const competition = (ranks) => ranks.map((rank) => 1 + ranks.filter((other) => other < rank).length);

/** How many of the pairs have a winner. */
export const impliedPairs = (ranks) => ranks.reduce((sum, a, i) => sum + ranks.slice(i + 1).filter((b) => a && b && a !== b).length, 0);

export function ranking(item, changed) {
  const count = item.responses.length;
  const ties = item.options.ties !== false;
  let ranks = Array(count).fill(null);
  let none = false;
  const answers = item.responses.map((_, i) => answer(item, i, `Answer ${letter(i)}`));
  answers.forEach((element, i) => {
    element.tabIndex = 0;
    element.querySelector(".answer-head").append(...kbd(letter(i)));
    element.addEventListener("focus", () => (current = i));
  });
  let current = 0;

  const focus = (i) => answers[(current = Math.max(0, Math.min(count - 1, i)))].focus();
  const at = () => Math.max(0, answers.indexOf(document.activeElement) === -1 ? current : answers.indexOf(document.activeElement));

  function set(index, rank, move = true) {
    if (!ties) ranks = ranks.map((each) => (each === rank ? null : each));
    ranks[index] = rank;
    show();
    changed(`Answer ${letter(index)}: rank ${rank}`);
    const next = [...ranks.keys()].map((i) => (index + 1 + i) % count).find((i) => ranks[i] === null);
    if (move && next !== undefined) focus(next);
    else if (move) answers[index].focus();
  }
  const shift = (by) => () => set(at(), Math.max(1, Math.min(count, (ranks[at()] ?? (by > 0 ? 0 : count + 1)) + by)), false);
  function toggleNone() {
    none = !none;
    show();
    changed(none ? "None acceptable" : "None acceptable: taken back");
  }

  const line = h("ol", { class: "tiers", "aria-label": "Order so far, best first" });
  const pairs = h("span", { class: "pairs" });
  const noneButton = item.options.none_acceptable === false ? null
    : h("button", { type: "button", class: "choice bad", "data-choice": "none", "aria-pressed": "false", onclick: toggleNone }, h("span", {}, "None acceptable"), kbd("N"));
  const bar = h("div", { class: "choices ranking-choices" }, h("div", { class: "order" }, line, pairs), noneButton);

  const chip = (i) =>
    h("span", { class: "chip", draggable: "true", "data-index": i, ondragstart: (event) => event.dataTransfer.setData("text/plain", String(i)) }, letter(i));
  /** A place to drop on: `rank` as it is, joining a tie, or between two tiers (a half). */
  const target = (rank, content, name) =>
    h(
      "li",
      {
        class: name,
        ondragover: (event) => event.preventDefault(),
        ondrop: (event) => {
          event.preventDefault();
          const index = Number(event.dataTransfer.getData("text/plain"));
          if (Number.isInteger(index) && index >= 0 && index < count) drop(index, rank);
        },
      },
      content,
    );
  function drop(index, rank) {
    const moved = ranks.map((each, i) => (i === index ? rank : each));
    const placed = moved.filter((each) => each !== null);
    ranks = moved.map((each) => (each === null ? null : 1 + placed.filter((other) => other < each).length));
    show();
    changed(`Answer ${letter(index)}: rank ${ranks[index]}`);
  }

  function show() {
    const levels = [...new Set(ranks.filter((rank) => rank !== null))].sort((a, b) => a - b);
    const tiers = levels.flatMap((rank, n) => [
      target(rank - 0.5, n ? h("span", { "aria-label": "better than" }, ">") : "", "gap"),
      target(ties ? rank : rank + 0.5, [...ranks.keys()].filter((i) => ranks[i] === rank).flatMap((i, m) => [m ? h("span", { class: "equal", "aria-label": "equal to" }, "=") : null, chip(i)]), "tier"),
    ]);
    const open = [...ranks.keys()].filter((i) => ranks[i] === null);
    line.replaceChildren(...tiers, target((levels.at(-1) ?? 0) + 1, open.length ? h("span", { class: "unranked" }, h("span", { class: "visually-hidden" }, "not ranked yet: "), open.map(chip)) : "", "gap last"));
    pairs.textContent = `implied pairs: ${impliedPairs(ranks)} of ${(count * (count - 1)) / 2}`;
    noneButton?.setAttribute("aria-pressed", String(none));
    answers.forEach((element, i) => {
      element.classList.toggle("ranked", ranks[i] !== null);
      element.querySelector(".verdict").textContent = ranks[i] === null ? "" : `${none ? "✗ " : ""}rank ${ranks[i]}`;
    });
  }
  show();

  return {
    answers: h("div", { class: `answers many ${count > 4 ? "dense" : ""}` }, answers),
    bar,
    keys: [
      ...item.responses.map((_, i) => ({ keys: [letter(i).toLowerCase()], label: `Go to answer ${letter(i)}`, run: () => focus(i), group: `A – ${letter(count - 1)}` })),
      ...item.responses.map((_, i) => ({ keys: [String(i + 1)], label: "Give its rank, and go to the next", run: () => set(at(), i + 1), group: `1 – ${count}` })),
      { keys: ["ArrowLeft"], label: "Go to the answer before", run: () => focus(at() - 1) },
      { keys: ["ArrowRight"], label: "Go to the answer after", run: () => focus(at() + 1) },
      { keys: ["Shift+ArrowUp"], label: "One rank better", run: shift(-1) },
      { keys: ["Shift+ArrowDown"], label: "One rank worse", run: shift(1) },
      noneButton && { keys: ["n", "Shift+n"], label: "None acceptable", run: toggleNone },
    ].filter(Boolean),
    shown: () => answers[0].focus({ preventScroll: true }),
    missing() {
      const open = [...ranks.keys()].filter((i) => ranks[i] === null);
      if (!open.length || (none && ties && open.length === count)) return null;
      return `Give a rank to ${open.map(letter).join(", ")}`;
    },
    payload: () => ({ ranks: competition(ranks.map((rank) => rank ?? 1)), none_acceptable: none }),
    draft: () => ({ ranks, none_acceptable: none }),
    restore(payload) {
      if (payload.ranks?.length === count) ranks = [...payload.ranks];
      none = Boolean(payload.none_acceptable);
      show();
    },
  };
}
