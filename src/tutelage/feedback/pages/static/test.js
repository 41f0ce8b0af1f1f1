/** The qualification test: how far it is, and after each judgment the right answer and why. */
import { announce, fromHtml, h, kbd } from "./dom.js";

const CHOICES = { first: "Answer 1 is better", second: "Answer 2 is better", tie: "About the same", both_bad: "Both are bad" };
const percent = (share) => `${Math.round(100 * share)} %`;

/** The known answer in words, as the item stood on the screen. */
export function inWords(answer) {
  if (answer.choice) return CHOICES[answer.choice];
  if (answer.ranks) {
    const names = answer.ranks.map((rank, i) => [rank, String.fromCharCode(65 + i)]).sort((a, b) => a[0] - b[0]);
    return names.map(([rank, name], i) => (i ? (rank === names[i - 1][0] ? " = " : " > ") : "") + name).join("");
  }
  return typeof answer.value === "boolean" ? (answer.value ? "Yes" : "No") : String(answer.value);
}

function count({ judged, right }) {
  const points = Number.isInteger(right) ? right : right.toFixed(1);
  return `${points} of ${judged} right`;
}

/** The line above an item of the test. */
export function about(test) {
  const goal = `at least ${test.least} answers, surely ${percent(test.threshold)} right`;
  return h("p", { class: "callout test" }, h("strong", {}, "Qualification test. "), test.judged ? `${count(test)} so far; the goal: ${goal}. ` : `The goal: ${goal}. `, "After each answer you are told the right one.");
}

/** Shows what was right; resolves when it was read. */
export function answerDialog({ right, answer, explanation, test }) {
  return new Promise((resolve) => {
    const close = h("button", { type: "submit", class: "primary" }, "Go on ", kbd("⏎"));
    const verdict = right ? "Right" : "Not the known answer";
    const ended = test.passed ? "You have passed: from now on it is real work." : `${count(test)} so far.`;
    const dialog = h("dialog", { class: `ask told ${right ? "right" : "wrong"}`, "aria-label": verdict },
      h("form", { method: "dialog" },
        h("h2", {}, `${right ? "✓" : "✗"} ${verdict}`),
        h("p", {}, "The known answer: ", h("strong", {}, inWords(answer)), "."),
        explanation ? h("div", { class: "prose", dir: "auto" }, fromHtml(explanation)) : null,
        h("p", { class: "muted" }, ended),
        h("div", { class: "dialog-actions" }, close)));
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
    close.focus();
    announce(`${verdict}. The known answer: ${inWords(answer)}.`, { seen: false });
  });
}
