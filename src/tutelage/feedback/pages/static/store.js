/** What this browser remembers for one annotator: drafts, keys, pace, the outbox. Without localStorage it lasts as long as the page. */
import { annotator } from "./api.js";

const memory = new Map();
const full = (name) => `tutelage/${annotator}/${name}`;

export function recall(name, otherwise = null) {
  try {
    const text = localStorage.getItem(full(name));
    if (text !== null) return JSON.parse(text);
  } catch {
    // storage is switched off, or the text is not ours
  }
  return memory.has(name) ? memory.get(name) : otherwise;
}

export function remember(name, value) {
  memory.set(name, value);
  try {
    localStorage.setItem(full(name), JSON.stringify(value));
    memory.delete(name);
  } catch {
    // full or switched off: the copy in memory stands
  }
}

export function forget(name) {
  memory.delete(name);
  try {
    localStorage.removeItem(full(name));
  } catch {
    // switched off
  }
}
