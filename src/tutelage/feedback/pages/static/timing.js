/** How long an item was worked on: visible time, active time (gaps of over half a minute do not count), keys, clicks. */

const IDLE = 30_000;

export class Timing {
  constructor() {
    this.reset();
    for (const kind of ["keydown", "pointerdown", "pointermove", "wheel", "scroll"])
      addEventListener(kind, (event) => this.act(event), { passive: true, capture: true });
    document.addEventListener("visibilitychange", () => this.turn());
  }

  reset() {
    const now = performance.now();
    Object.assign(this, { active: 0, visible: 0, keys: 0, clicks: 0, last: now, shown: document.hidden ? null : now });
  }

  act(event) {
    this.tick();
    if (event.type === "keydown" && !event.repeat) this.keys += 1;
    if (event.type === "pointerdown") this.clicks += 1;
  }

  tick() {
    const now = performance.now();
    if (!document.hidden) this.active += Math.min(now - this.last, IDLE);
    this.last = now;
  }

  turn() {
    const now = performance.now();
    if (document.hidden && this.shown !== null) {
      this.active += Math.min(now - this.last, IDLE);
      this.visible += now - this.shown;
      this.shown = null;
    } else if (!document.hidden) {
      this.shown = now;
    }
    this.last = now;
  }

  read() {
    this.tick();
    const visible = this.visible + (this.shown === null ? 0 : performance.now() - this.shown);
    return { active_ms: Math.round(this.active), visible_ms: Math.round(visible), keys: this.keys, clicks: this.clicks };
  }
}
