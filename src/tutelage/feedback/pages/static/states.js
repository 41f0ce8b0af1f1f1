/** What the page says when there is nothing to judge: a title and a sentence for each reason. */
import { find, h } from "./dom.js";

export const NOTHING = {
  done: ["All done", "There is nothing left for you to judge in this project. Thank you."],
  paused: ["Paused", "This project is paused. What you judged is saved; this page goes on by itself when the project does."],
  closed: ["Closed", "This project is closed. What you judged is saved. Thank you."],
  unqualified: ["Thank you", "The qualification test is over. Your answers did not agree with the known ones often enough for this project. Nothing more is asked of you here."],
  wait: ["A moment, please", "Others hold what is left, or more is on its way. This page goes on by itself."],
};

/** Where to go from there; whoever runs the project, to its label quality. */
export function waysOn(reason) {
  const { quality } = find("main").dataset;
  const further = reason === "done" && quality ? h("a", { class: "button primary", href: quality }, "Label quality") : null;
  return [further, h("a", { class: "button", href: "/" }, "Your projects")];
}
