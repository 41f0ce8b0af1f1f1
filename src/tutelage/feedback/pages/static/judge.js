/** Judging, from one item to the next: drafts, the outbox, the item fetched ahead, undo, leases. */
import { newKey, request } from "./api.js";
import { flagDialog, helpDialog, skipDialog } from "./dialogs.js";
import { announce, find, h } from "./dom.js";
import { Drawer } from "./drawer.js";
import { listen, pageKeys, reachable } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Pace } from "./pace.js";
import { Screen } from "./screen.js";
import { NOTHING, waysOn } from "./states.js";
import { forget, recall, remember } from "./store.js";
import { about, answerDialog } from "./test.js";
import { fetchAhead } from "./texts.js";
import { Timing } from "./timing.js";

const DRAFT_AFTER = 1200; // milliseconds without a change before a draft goes to the server too

const project = find("main").dataset.project;
const pace = new Pace(project);
const drawer = new Drawer(project);
const timing = new Timing();
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("tutelage") : null;
const desk = { task: null, ahead: [], flag: null, problem: null, undoKey: null, waiting: true, fetching: false };

const outbox = new Outbox({
  moved: () => (status(), pace.show(null, unsent().length)),
  stuck: (error) => status(error),
  accepted(entry, reply) {
    reached();
    forget(`key/${entry.assignment}`);
    if (entry.project !== project) return;
    pace.show(reply.next?.progress, unsent().length);
    if (reply.feedback) return tell(entry, reply);
    if (desk.waiting && reply.next && !isUnsent(reply.next.assignment)) show(reply.next);
    fetchNext();
  },
  refused(entry, error) {
    reached();
    announce(`The server refused a judgment: ${error.message}. A copy is kept on this device.`);
    forget(`key/${entry.assignment}`);
    if (desk.waiting) fetchCurrent();
  },
});
const unsent = () => outbox.entries().filter((entry) => entry.project === project);
const isUnsent = (assignment) => assignment && unsent().some((entry) => entry.assignment === assignment);

/** The banner: what is kept here and why. Empty when all is well. */
function status(error) {
  if (error) desk.problem = error;
  const count = outbox.entries().length;
  const kept = count ? ` ${count === 1 ? "1 judgment is" : `${count} judgments are`} kept on this device and will be sent.` : "";
  const text = desk.problem?.signedOut ? `You are signed out: open your link again.${kept}` : desk.problem ? `No connection to the server.${kept}` : "";
  const banner = find("banner");
  banner.hidden = !text;
  if (banner.textContent !== text) banner.textContent = text;
}

function reached() {
  desk.problem = null;
  status();
}

/** In a qualification test the right answer comes first, then the next item. */
async function tell(entry, { feedback, next }) {
  desk.telling = true;
  await answerDialog(feedback);
  desk.telling = false;
  desk.ahead = desk.ahead.filter((task) => task.assignment !== next?.assignment);
  if (!next || isUnsent(next.assignment)) return fetchCurrent();
  show(next);
  fetchNext();
}

async function fetchCurrent() {
  desk.waiting = true;
  try {
    const task = await request("GET", `/api/task/next?project=${encodeURIComponent(project)}`);
    reached();
    if (isUnsent(task.assignment)) return; // judged already, and on its way: `accepted` goes on
    if (desk.waiting && !desk.telling) show(task);
    fetchNext();
  } catch (error) {
    status(error);
    if (error.status === 404 || error.status === 410) screen.message("This project is not there", error.message, h("a", { class: "button", href: "/" }, "Your projects"));
    else setTimeout(fetchCurrent, 3000);
  }
}

/** The item after this one, so that it is there at once. Not before this device's judgments have arrived. */
async function fetchNext() {
  if (desk.fetching || desk.waiting || desk.ahead.length || unsent().length) return;
  desk.fetching = true;
  try {
    const task = await request("GET", `/api/task/next?project=${encodeURIComponent(project)}&ahead=1`);
    if (task.assignment && task.assignment !== desk.task?.assignment && !isUnsent(task.assignment)) {
      desk.ahead = [task];
      screen.stage.dataset.ahead = task.assignment;
      fetchAhead(task.item);
      if (desk.waiting) advance();
    }
  } catch {
    // it is fetched when it is needed
  }
  desk.fetching = false;
}

function show(task) {
  clearTimeout(desk.retry);
  if (!task.assignment) return showNothing(task);
  Object.assign(desk, { task, waiting: false, flag: null });
  screen.show(task.item, task.test && about(task.test));
  const draft = recall(`draft/${task.assignment}`) ?? task.draft;
  if (draft) restore(draft);
  else screen.setFlag(null);
  timing.reset();
  pace.show(task.progress, unsent().length);
  drawer.notice(task.instructions_version);
  announce(draft ? "Next item, with your draft" : "Next item", { seen: false });
}

function restore(draft) {
  desk.flag = draft.flag?.tags?.length ? draft.flag : null;
  screen.ui.restore(draft);
  screen.setFlag(desk.flag);
}

function showNothing({ reason, progress }) {
  Object.assign(desk, { task: null, waiting: true });
  const [title, text] = NOTHING[reason] ?? NOTHING.wait;
  screen.message(title, text, ...waysOn(reason));
  pace.show(progress, unsent().length);
  announce(title, { seen: false });
  if (!["done", "closed", "unqualified"].includes(reason)) desk.retry = setTimeout(fetchCurrent, reason === "paused" ? 20_000 : 5000);
}

function advance() {
  Object.assign(desk, { task: null, waiting: true });
  const next = desk.ahead.shift();
  if (next) show(next);
  else screen.wait("Fetching the next item …", "Your judgment is saved on this device and on its way.");
}

/** Hands the judgment to the outbox and goes on at once. One key for one assignment, whichever tab sends it. */
function send(payload) {
  const { task } = desk;
  const key = recall(`key/${task.assignment}`) ?? newKey();
  remember(`key/${task.assignment}`, key);
  const body = { payload: desk.flag ? { ...payload, flag: desk.flag } : payload, ...timing.read(), view: screen.view, instructions_version: task.instructions_version };
  pace.add(body.active_ms);
  clearTimeout(desk.saving);
  forget(`draft/${task.assignment}`);
  if (task.test && !payload.skip) {
    Object.assign(desk, { task: null, waiting: true });
    screen.wait("Looking at your answer …", "The right one comes next.");
  } else advance();
  outbox.add({ project, assignment: task.assignment, key, body, task });
  tabs?.postMessage({ judged: task.assignment });
}

function changed(words) {
  if (words) announce(words, { seen: false });
  if (!desk.task) return;
  const payload = { ...(screen.ui.draft ?? screen.ui.payload)(), ...(desk.flag ? { flag: desk.flag } : {}) };
  const { assignment } = desk.task;
  remember(`draft/${assignment}`, payload);
  clearTimeout(desk.saving);
  desk.saving = setTimeout(() => request("PUT", `/api/task/${assignment}/draft`, { payload }).catch(() => {}), DRAFT_AFTER);
}

function reopen(task) {
  forget(`key/${task.assignment}`);
  desk.ahead = [desk.task, ...desk.ahead].filter((each) => each && each.assignment !== task.assignment);
  pace.takeBack();
  remember(`draft/${task.assignment}`, task.draft);
  show(task);
  announce("Your last judgment is open again");
}

async function undo() {
  const last = unsent().at(-1);
  if (last && last.tries === 0) {
    outbox.remove(last.key);
    return reopen({ ...last.task, draft: last.body.payload });
  }
  if (last) await outbox.flush();
  if (unsent().length) return announce("Undo needs the connection: your last judgment may have arrived");
  desk.undoKey ??= newKey();
  try {
    const task = await request("POST", "/api/task/undo", { project: Number(project) || project, key: desk.undoKey });
    desk.undoKey = null;
    if (task?.assignment) reopen(task);
    else announce("There is nothing to undo");
  } catch (error) {
    if (error.passing) return announce("Undo needs the connection");
    desk.undoKey = null;
    announce(error.status === 404 || error.status === 409 ? "There is nothing to undo" : error.message);
  }
}

const commands = {
  submit() {
    if (!desk.task) return;
    const missing = screen.ui.missing();
    if (missing) announce(missing);
    else send(screen.ui.payload());
  },
  undo,
  async skip() {
    const { task } = desk;
    if (!task) return;
    const reason = await skipDialog(task.item.options.skip_reasons);
    if (reason && desk.task === task) send({ skip: reason });
  },
  async flag() {
    const { task } = desk;
    if (!task) return;
    const flag = await flagDialog(task.item.options.flag_tags, desk.flag);
    if (!flag || desk.task !== task) return;
    desk.flag = flag.tags.length ? flag : null;
    screen.setFlag(desk.flag);
    changed(desk.flag ? `Flagged: ${flag.tags.join(", ")}` : "Flag taken back");
  },
  raw: () => desk.task && announce(screen.raw(), { seen: false }),
  diff: () => desk.task && announce(screen.differences(), { seen: !screen.ui.diff }),
  play: () => desk.task && announce(screen.play() ?? "", { seen: false }),
  instructions: () => drawer.toggle(),
  help: () => helpDialog([["This task", [...(screen.ui?.keys ?? [])]], ["Everywhere", reachable(pageKeys(commands), screen.ui?.keys ?? [])]]),
  leave() {
    if (document.activeElement?.closest("textarea, input, [contenteditable]")) screen.stage.focus({ preventScroll: true });
    else if (drawer.open) drawer.close();
  },
};
const screen = new Screen(commands, changed);
listen(() => [...(screen.ui?.keys ?? []), ...pageKeys(commands)]);
for (const name of ["instructions", "help"]) document.querySelector(`.top [data-command=${name}]`).addEventListener("click", commands[name]);
/** A page that comes back from the browser's memory may show what was judged since. */
addEventListener("pageshow", (event) => event.persisted && location.reload());
tabs?.addEventListener("message", ({ data }) => {
  desk.ahead = desk.ahead.filter((task) => task.assignment !== data.judged);
  if (desk.task?.assignment !== data.judged) return;
  announce("You judged this item in another tab");
  advance();
  if (desk.waiting) fetchCurrent();
});
(function keepLeases() {
  const held = document.hidden ? [] : [desk.task, ...desk.ahead].filter(Boolean);
  for (const task of held) request("POST", `/api/task/${task.assignment}/heartbeat`).catch(() => {});
  setTimeout(keepLeases, Math.max(10, Math.min(120, (desk.task?.lease_seconds ?? 600) / 3)) * 1000);
})();
status();
outbox.flush().then(fetchCurrent);
