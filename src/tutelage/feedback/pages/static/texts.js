/** What is judged, drawn: a text rendered or raw, the turns of a dialogue, pictures and short videos. */
import { fromHtml, h, rawText } from "./dom.js";

const ROLES = { user: "User", assistant: "Assistant", system: "System", tool: "Tool" };

/** A text both ways; the page's data-view says which one shows. */
export function text(value, html, kind = "") {
  const rendered = h("div", { class: "rendered prose", dir: "auto" });
  if (html) rendered.append(fromHtml(html));
  else rendered.append(value);
  return h("div", { class: `text ${kind}` }, rendered, h("div", { class: "raw", dir: "auto" }, rawText(value)));
}

export function prompt(messages) {
  const turns = messages.map((message) =>
    h("li", { class: `turn turn-${message.role}` }, h("span", { class: "role" }, ROLES[message.role] ?? message.role), text(message.content, message.html)),
  );
  return h("section", { class: "prompt", "aria-label": "Conversation" }, h("ol", { class: "turns" }, turns));
}

const calm = matchMedia("(prefers-reduced-motion: reduce)");

function one({ url, type }, label) {
  if (type.startsWith("video"))
    return h("video", { src: url, controls: true, muted: true, loop: true, playsinline: true, preload: "auto", "aria-label": label, autoplay: !calm.matches });
  return h("img", { src: url, alt: label, decoding: "async" });
}

export function media(list, label) {
  if (!list?.length) return null;
  return h("div", { class: "media" }, list.map((each, i) => one(each, list.length > 1 ? `${label}, part ${i + 1}` : label)));
}

/** The media of each response: its own, or one of the item's where there are as many as responses. */
export function mediaOf(item, index) {
  const own = item.responses[index].media;
  if (own?.length) return own;
  return item.media?.length === item.responses.length && item.responses.length > 1 ? [item.media[index]] : [];
}

/** Pictures and videos that belong to the item as a whole. */
export function mediaOfItem(item) {
  const shared = item.media?.length && !(item.media.length === item.responses.length && item.responses.length > 1);
  return shared ? media(item.media, "Segment") : null;
}

/** Plays all videos together from their start, or stops them. */
export function playAll(root) {
  const videos = [...root.querySelectorAll("video")];
  const stop = videos.some((video) => !video.paused && !video.ended);
  for (const video of videos) {
    if (stop) video.pause();
    else {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  }
  return videos.length > 0;
}

export function fetchAhead(item) {
  for (const each of [...(item.media ?? []), ...item.responses.flatMap((response) => response.media ?? [])])
    if (each.type.startsWith("image")) new Image().src = each.url;
}

/** One answer: a heading with a badge, media, the text. */
export function answer(item, index, name) {
  const response = item.responses[index];
  return h(
    "article",
    { class: "answer", "aria-label": name, "data-index": index },
    h("header", { class: "answer-head" }, h("h2", {}, name), h("span", { class: "verdict" })),
    media(mediaOf(item, index), name),
    response.text ? text(response.text, response.html, "answer-text") : mediaOf(item, index).length ? null : h("p", { class: "muted empty-text" }, "(an empty answer)"),
  );
}
