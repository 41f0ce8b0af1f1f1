/** One item on the page: its conversation, its answers, the bar below; raw or rendered, with differences or without. */
import { difference } from "./diff.js";
import { find, h, kbd, rawText } from "./dom.js";
import { critique } from "./kinds/critique.js";
import { rating, yesno } from "./kinds/direct.js";
import { preference } from "./kinds/preference.js";
import { ranking } from "./kinds/ranking.js";
import { demonstration } from "./kinds/writing.js";
import { recall, remember } from "./store.js";
import { mediaOfItem, playAll, prompt } from "./texts.js";

const KINDS = { preference, ranking, rating, yesno, critique, demonstration };

export class Screen {
  /** commands: {name: function}; changed(words): something was chosen or written. */
  constructor(commands, changed) {
    this.stage = find("stage");
    this.stage.tabIndex = -1;
    this.changed = changed;
    this.choices = h("div", { class: "bar-choices" });
    const button = (name, label, key, kind = "quiet") => h("button", { type: "button", class: kind, "data-command": name, onclick: (event) => event.detail < 2 && commands[name]() }, label, " ", kbd(key));
    this.buttons = h("div", { class: "bar-actions", role: "group", "aria-label": "This item" },
      button("undo", "Undo", "U"), button("flag", "Flag", "F"), button("skip", "Skip", "S"), button("submit", "Submit", "⏎", "primary"));
    find("bar").append(this.choices, this.buttons);
    this.tools = h("div", { class: "tools", role: "toolbar", "aria-label": "How the texts are shown" },
      h("button", { type: "button", class: "quiet small", "data-command": "raw", "aria-pressed": "false", onclick: commands.raw }, "Raw text ", kbd("M")),
      h("button", { type: "button", class: "quiet small", "data-command": "diff", "aria-pressed": "false", onclick: commands.diff }, "Differences ", kbd("D")),
      h("button", { type: "button", class: "quiet small", "data-command": "play", onclick: commands.play }, "Play together ", kbd("P")));
  }

  /** Draws an item, with a note above it where there is one, and gives back its part of the page: keys, payload(), missing(), restore(). */
  show(item, note = null) {
    this.item = item;
    this.ui = KINDS[item.kind](item, this.changed);
    const inside = this.stage.contains(document.activeElement) || this.choices.contains(document.activeElement);
    const parts = [note, this.tools, item.prompt.length ? prompt(item.prompt) : null, mediaOfItem(item), this.ui.answers];
    this.stage.replaceChildren(...parts.filter(Boolean));
    this.stage.setAttribute("aria-busy", "false");
    this.stage.className = `stage kind-${item.kind}`;
    this.choices.replaceChildren(this.ui.bar);
    find("bar").hidden = false;
    find("bar").classList.remove("ended");
    this.setDiff(false);
    this.setView(this.ui.view ?? recall("view", "rendered"));
    this.tool("diff").hidden = !this.ui.diff;
    this.tool("play").hidden = this.stage.querySelectorAll("video").length < 2;
    scrollTo(0, 0);
    if (inside || document.activeElement === document.body) this.stage.focus({ preventScroll: true });
    this.ui.shown?.();
    return this.ui;
  }

  tool(name) {
    return this.tools.querySelector(`[data-command=${name}]`);
  }

  get view() {
    return this.stage.dataset.view;
  }

  setView(view) {
    this.stage.dataset.view = view;
    this.tool("raw").setAttribute("aria-pressed", String(view === "raw"));
  }

  raw() {
    if (this.diff) this.setDiff(false);
    this.setView(this.view === "raw" ? "rendered" : "raw");
    if (!this.ui?.view) remember("view", this.view);
    return this.view === "raw" ? "Raw text" : "Rendered text";
  }

  setDiff(on) {
    this.diff = on;
    this.tool("diff").setAttribute("aria-pressed", String(on));
    this.stage.toggleAttribute("data-diff", on);
  }

  /** Marks what only one of the two answers says, on the raw texts. */
  differences() {
    if (!this.ui?.diff) return "Differences are shown between two answers";
    const texts = this.item.responses.map((response) => response.text);
    const marked = this.diff ? null : difference(...texts);
    if (!this.diff && !marked) return "These answers are too long to compare word by word";
    this.setDiff(!this.diff);
    this.stage.querySelectorAll(".answer .answer-text .raw").forEach((element) => {
      const index = Number(element.closest(".answer").dataset.index);
      element.replaceChildren(...(marked ? marked[index] : rawText(texts[index])));
    });
    this.setView(this.diff ? "raw" : recall("view", "rendered"));
    return this.diff ? "Differences marked" : "Differences hidden";
  }

  play() {
    if (!playAll(this.stage)) return "There is no video here";
    return null;
  }

  setFlag(flag) {
    const button = this.buttons.querySelector("[data-command=flag]");
    button.classList.toggle("flagged", Boolean(flag));
    button.replaceChildren(flag ? `⚑ Flagged: ${flag.tags.join(", ")} ` : "Flag ", ...kbd("F"));
  }

  /** In place of an item that is on its way. */
  wait(title, text) {
    this.message(title, text);
    this.stage.setAttribute("aria-busy", "true");
  }

  /** In place of an item: a message, and what can be done. */
  message(title, text, ...more) {
    this.item = this.ui = null;
    this.stage.className = "stage ended";
    this.stage.setAttribute("aria-busy", "false");
    this.stage.replaceChildren(h("div", { class: "card empty" }, h("h2", {}, title), h("p", {}, text), h("p", { class: "actions" }, more)));
    this.choices.replaceChildren();
    find("bar").hidden = false;
    find("bar").classList.add("ended");
  }
}
