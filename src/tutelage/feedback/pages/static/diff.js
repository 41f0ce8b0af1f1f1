/** Which words of two texts are shared: the longest common subsequence of words, marked on both sides. */
import { h } from "./dom.js";

const MOST_CELLS = 4_000_000;

/** words(text): words and signs, each with the space that follows; together they are the text. */
export const words = (text) => text.match(/^\s+|(?:[\p{L}\p{M}\p{N}_'’]+|[^\s\p{L}\p{M}\p{N}_])\s*/gu) ?? [];

/** keep(a, b): for each word of a and of b, whether it is in the common subsequence; null where the texts are too long. */
export function keep(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const [n, m] = [a.length - start - end, b.length - start - end];
  if (n * m > MOST_CELLS) return null;
  const length = new Uint16Array((n + 1) * (m + 1));
  const at = (i, j) => i * (m + 1) + j;
  for (let i = n - 1; i >= 0; i -= 1)
    for (let j = m - 1; j >= 0; j -= 1)
      length[at(i, j)] = a[start + i] === b[start + j] ? length[at(i + 1, j + 1)] + 1 : Math.max(length[at(i + 1, j)], length[at(i, j + 1)]);
  const [left, right] = [a.map((_, i) => i < start || i >= a.length - end), b.map((_, j) => j < start || j >= b.length - end)];
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) left[start + i++] = right[start + j++] = true;
    else if (length[at(i + 1, j)] >= length[at(i, j + 1)]) i += 1;
    else j += 1;
  }
  return [left, right];
}

function marked(parts, kept) {
  const nodes = [];
  for (let i = 0; i < parts.length; ) {
    let end = i;
    while (end < parts.length && kept[end] === kept[i]) end += 1;
    const run = parts.slice(i, end).join("");
    const words = run.trimEnd();
    nodes.push(...(kept[i] || !words ? [run] : [h("mark", { class: "own" }, words), run.slice(words.length)]));
    i = end;
  }
  return nodes;
}

/** The two texts as lists of nodes, with what only one of them says marked; null where they are too long to compare. */
export function difference(first, second) {
  const [a, b] = [words(first), words(second)];
  const kept = keep(...[a, b].map((parts) => parts.map((part) => part.trimEnd())));
  return kept && [marked(a, kept[0]), marked(b, kept[1])];
}
