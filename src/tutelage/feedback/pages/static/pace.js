/** How far the project is, and how fast this person is: progress, median time, judgments in this sitting. */
import { find, h } from "./dom.js";
import { recall, remember } from "./store.js";

const KEPT = 200;

export const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

export function seconds(milliseconds) {
  const whole = Math.round(milliseconds / 1000);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export class Pace {
  constructor(project) {
    this.name = `pace/${project}`;
    this.sitting = 0;
    this.progress = null;
  }

  add(milliseconds) {
    this.sitting += 1;
    remember(this.name, [...recall(this.name, []), milliseconds].slice(-KEPT));
  }

  takeBack() {
    this.sitting = Math.max(0, this.sitting - 1);
    remember(this.name, recall(this.name, []).slice(0, -1));
  }

  /** unsent: judgments that the server has not counted yet. */
  show(progress, unsent) {
    this.progress = progress ?? this.progress;
    if (!this.progress) return;
    const total = Math.max(1, this.progress.total);
    const done = Math.min(total, this.progress.done + unsent);
    const times = recall(this.name, []);
    const parts = [`${done.toLocaleString("en")} of ${this.progress.total.toLocaleString("en")}`, times.length ? `median ${seconds(median(times))}` : null, this.sitting ? `${this.sitting} this sitting` : null];
    const bar = h("progress", { max: total, value: done, "aria-label": "Judgments done in this project" });
    find("pace").replaceChildren(bar, h("span", { class: "numbers" }, parts.filter(Boolean).map((part, i) => h("span", { class: `pace-${i}` }, part))));
  }
}
