/** Judgments on their way: kept on this device until the server has acknowledged them, sent again under the same key. */
import { request } from "./api.js";
import { forget, recall, remember } from "./store.js";

const WAITS = [1000, 2000, 4000, 8000, 15_000];

/** An entry is {assignment, key, body, task, tries}. Tabs share the outbox; the key makes a second sending harmless. */
export class Outbox {
  /** listeners: accepted(entry, reply), refused(entry, error), stuck(error) when sending stopped for now, moved(). */
  constructor(listeners) {
    this.listeners = listeners;
    this.failures = 0;
    this.sending = null;
    addEventListener("online", () => this.flush());
    addEventListener("storage", (event) => event.key?.endsWith("/outbox") && this.elsewhere());
  }

  /** Another tab has put something in or sent it. What it leaves behind, when it is closed, this one sends. */
  elsewhere() {
    this.listeners.moved();
    clearTimeout(this.timer);
    if (this.entries().length) this.timer = setTimeout(() => this.flush(), 2 * WAITS[0]);
  }

  entries() {
    return recall("outbox", []);
  }

  add(entry) {
    remember("outbox", [...this.entries().filter((each) => each.key !== entry.key), { ...entry, tries: 0 }]);
    this.listeners.moved();
    this.flush();
  }

  remove(key) {
    const left = this.entries().filter((each) => each.key !== key);
    if (left.length) remember("outbox", left);
    else forget("outbox");
    this.listeners.moved();
  }

  /** Sends what is there, oldest first. One sender at a time, over all tabs where the browser has locks. */
  flush() {
    clearTimeout(this.timer);
    this.sending ??= this.locked(() => this.send()).finally(() => {
      this.sending = null;
      if (this.entries().length) this.timer = setTimeout(() => this.flush(), this.failures ? WAITS[Math.min(this.failures, WAITS.length) - 1] : 0);
    });
    return this.sending;
  }

  locked(work) {
    return navigator.locks ? navigator.locks.request("tutelage-outbox", work) : work();
  }

  async send() {
    for (let entry; (entry = this.entries()[0]); ) {
      this.mark(entry);
      try {
        const reply = await request("POST", `/api/task/${entry.assignment}/submit`, { key: entry.key, ...entry.body });
        this.failures = 0;
        this.remove(entry.key);
        this.listeners.accepted(entry, reply);
      } catch (error) {
        if (error.passing || error.signedOut) {
          this.failures += 1;
          this.listeners.stuck(error);
          return;
        }
        if (error.status === undefined) throw error;
        remember("refused", [...recall("refused", []), { ...entry, detail: error.message }].slice(-50));
        this.remove(entry.key);
        this.listeners.refused(entry, error);
      }
    }
  }

  mark(entry) {
    remember("outbox", this.entries().map((each) => (each.key === entry.key ? { ...each, tries: each.tries + 1 } : each)));
  }
}
