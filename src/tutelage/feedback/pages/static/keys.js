/** From a key event to what it does: the item's own keys first, then the commands of the page. */

const TEXT = "textarea, select, input:not([type=checkbox]):not([type=radio])";
const WRITABLE = "[contenteditable=true]:not([aria-readonly=true])";

/** The name of a pressed key: "b", "Shift+1", "Ctrl+Enter", "?". Digits go by their place on the keyboard, so that Shift and layouts do not change them. */
export function nameOf(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1];
  const numeric = digit !== undefined && (event.code.startsWith("Numpad") ? /^\d$/.test(event.key) : true);
  const sign = !numeric && event.key.length === 1 && !/\p{L}/u.test(event.key);
  let name = numeric ? digit : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (name === "Esc") name = "Escape";
  const shift = event.shiftKey && !sign ? "Shift+" : "";
  return (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + shift + name;
}

/** Whether the element keeps this key for itself: a text being written, a button about to be pressed. */
function keeps(target, name) {
  if (name === "Ctrl+Enter" || name === "Escape") return false;
  if (target.matches(TEXT) || target.closest(WRITABLE)) return true;
  if (target.closest("[aria-readonly=true]") && /Arrow|Home|End|Page/.test(name)) return true;
  if (name === "Enter") return target.matches("a, summary, video") || (target.matches("button") && target.getAttribute("aria-pressed") !== "true");
  return target.matches("video") && name.startsWith("Arrow");
}

/** bindings(): the list [{keys, run, when}] of the moment, the first match counts. */
export function listen(bindings) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
    const name = nameOf(event);
    if (!(event.target instanceof Element) || keeps(event.target, name)) return;
    const found = bindings().find((each) => each.keys.includes(name) && (!each.when || each.when()));
    if (!found) return;
    event.preventDefault();
    if (!event.repeat) found.run();
  });
}

/** The keys of the page itself. A letter that the item uses for itself still works with Shift. */
export function pageKeys(commands) {
  const letter = (key, label, name) => ({ keys: [key, `Shift+${key}`], label, run: commands[name] });
  return [
    { keys: ["Enter", "Ctrl+Enter"], label: "Submit", run: commands.submit },
    letter("u", "Undo the last judgment", "undo"),
    letter("s", "Skip, with a reason", "skip"),
    letter("f", "Flag a problem", "flag"),
    letter("g", "Instructions", "instructions"),
    letter("m", "Raw text or rendered", "raw"),
    letter("d", "Mark the differences", "diff"),
    letter("p", "Play the videos together", "play"),
    { keys: ["?"], label: "This list", run: commands.help },
    { keys: ["Escape"], label: "Leave a text field; close the instructions", run: commands.leave },
  ];
}

/** The same list with the keys that help should name: of a command with Shift as a second way, the first that is free. */
export function reachable(list, own) {
  const taken = (key) => own.some((each) => each.keys.includes(key));
  return list.map((each) => (each.keys[1]?.startsWith("Shift+") ? { ...each, keys: [each.keys.find((key) => !taken(key)) ?? each.keys[0]] } : each));
}
