// The hub's queues: what waits and runs in each, beside what may.

import { el, keyed, mark, say } from "./dom.js";
import { integer, plural, rate, seconds } from "./format.js";

/** Show the queues; `count` is how many there are, of which the busiest came. */
export function showQueues(queues, count) {
  document.getElementById("queues").hidden = queues.length === 0;
  const more = count - queues.length;
  say(document.getElementById("queues-note"), more > 0 ? `the ${integer(queues.length)} busiest of ${plural(count, "queue")}` : "");
  keyed(document.querySelector("#queues tbody"), queues, (queue) => queue.name, create, update);
}

function create(queue) {
  const cell = (name, label, ...children) => el("td", { class: `number ${name}`, "data-label": label }, ...children);
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, queue.name, el("span", { class: "sub" })),
    cell("weight", "Weight"),
    cell("waiting", "Waiting", el("span"), el("span", { class: "sub" })),
    el("td", { class: "priorities", "data-label": "By priority" }, el("ul")),
    cell("oldest", "Oldest"),
    cell("running", "Running", el("span"), el("span", { class: "sub" })),
    cell("coming", "Per second", el("span"), el("span", { class: "sub" })),
  );
}

function update(row, queue) {
  const find = (name) => row.querySelector(`.${name}`);
  say(row.querySelector("th .sub"), queue.default_priority === null ? "" : `priority ${queue.default_priority} if none is named`);
  say(find("weight"), String(queue.weight));
  figure(find("waiting"), queue.queued, queue.max_queued, integer);
  mark(find("waiting"), "title", queue.max_queued === null ? null : FULL[queue.when_full]);
  keyed(
    find("priorities").firstElementChild,
    Object.entries(queue.by_priority).sort(([one], [other]) => other - one),
    ([priority]) => priority,
    ([priority]) => el("li", {}, el("span", { class: "of" }, priority), " ", el("b")),
    (node, [, waiting]) => say(node.lastElementChild, integer(waiting)),
  );
  say(find("oldest"), queue.queued ? seconds(queue.oldest_s) : "–");
  figure(find("running"), queue.running, queue.max_running, integer);
  figure(find("coming"), queue.submitted_per_s, queue.max_per_second, rate);
}

const FULL = { reject: "When full, what comes is refused", drop_lowest: "When full, the lowest task gives way" };

/** A figure with its limit below it, which stands out once it has been reached. */
function figure(cell, value, limit, word) {
  const [main, small] = cell.children;
  say(main, word(value));
  say(small, limit === null ? "" : `of ${word(limit)}`);
  mark(cell, "data-tone", limit !== null && value >= limit ? "warn" : null);
}
