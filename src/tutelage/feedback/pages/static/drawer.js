/** The instructions beside the work: a drawer that stays open while judging, with every version. */
import { request } from "./api.js";
import { announce, find, fromHtml, h, kbd } from "./dom.js";
import { recall, remember } from "./store.js";

export class Drawer {
  constructor(project) {
    this.project = project;
    this.element = find("drawer");
    this.button = document.querySelector("[data-command=instructions]");
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
  }

  get open() {
    return !this.element.hidden;
  }

  toggle() {
    if (this.open) this.close();
    else this.show();
  }

  close() {
    const inside = this.element.contains(document.activeElement);
    this.element.hidden = true;
    document.body.classList.remove("with-drawer");
    this.button.setAttribute("aria-expanded", "false");
    if (inside) this.button.focus();
  }

  /** Opens by itself, without taking the focus, when there are instructions that this person has not been shown. */
  async notice(version) {
    if (!version || recall(`instructions/${this.project}`, 0) >= version || this.noticed === version) return;
    this.noticed = version;
    await this.show({ focus: false, fresh: recall(`instructions/${this.project}`, 0) > 0 });
  }

  async show({ version = null, focus = true, fresh = false } = {}) {
    const before = document.activeElement;
    let data;
    try {
      data = await request("GET", `/api/instructions?project=${encodeURIComponent(this.project)}${version ? `&version=${version}` : ""}`);
    } catch (error) {
      return announce(error.status === 0 ? "Offline: the instructions cannot be fetched now" : error.message);
    }
    if (!data.html && !focus) return;
    this.draw(data, fresh);
    this.element.hidden = false;
    document.body.classList.add("with-drawer");
    this.button.setAttribute("aria-expanded", "true");
    if (!version) remember(`instructions/${this.project}`, data.version);
    if (focus && document.activeElement === before) this.element.focus(); // who has gone on writing keeps writing
  }

  draw(data, fresh) {
    const versions = (data.versions ?? []).map((each) => (typeof each === "object" ? each : { version: each }));
    const choice = h("select", { id: "instructions-version", onchange: (event) => this.show({ version: event.target.value }) },
      versions.map((each) => h("option", { value: each.version, selected: each.version === data.version }, `Version ${each.version}${each.at ? ` · ${each.at}` : ""}`)));
    const text = h("div", { class: "prose", dir: "auto" });
    if (data.html) text.append(fromHtml(data.html));
    else text.append(h("p", { class: "muted" }, "This project has no written instructions: choose what you would rather be told."));
    this.element.replaceChildren(
      h("div", { class: "card-head" }, h("h2", {}, "Instructions"), h("button", { type: "button", class: "quiet small", onclick: () => this.close() }, "Close ", kbd("G"))),
      fresh ? h("p", { class: "callout" }, `New: version ${data.version}`) : "",
      versions.length > 1 ? h("div", { class: "row" }, h("label", { for: "instructions-version", class: "visually-hidden" }, "Version"), choice) : "",
      text,
    );
  }
}
