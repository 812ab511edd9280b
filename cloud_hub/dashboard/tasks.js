// The hub's newest tasks and its dead letters; one opens with all that is known of it.

import { ask, closeButton, fact, fill, open, table } from "./dialog.js";
import { el, keyed, mark, say } from "./dom.js";
import { instant, integer, plural, seconds, shortId } from "./format.js";
import { whySection } from "./why.js";

const TONES = { COMPLETED: "good", PROCESSING: "calm", FAILED: "warn", TERMINATED: "bad", REJECTED: "bad" };
const ENDED = new Set(["COMPLETED", "TERMINATED", "REJECTED"]);

export function showTasks({ recent, failures }, states) {
  list("recent", recent);
  list("failures", failures);
  say(document.getElementById("recent-note"), `${integer(states.COMPLETED)} completed`);
  say(document.getElementById("failures-note"), states.TERMINATED ? integer(states.TERMINATED) : "");
}

function list(id, tasks) {
  keyed(document.getElementById(id), tasks, (task) => task.task_id, create, update);
  document.getElementById(`${id}-empty`).hidden = tasks.length > 0;
}

function create(task) {
  return el(
    "li",
    {},
    el(
      "button",
      { type: "button", class: "task", onclick: () => openTask(task.task_id) },
      el("span", { class: "badge" }, el("i", { class: "lamp", "aria-hidden": "true" }), el("span")),
      el("span", { class: "what" }),
      el("span", { class: "why" }),
      el("code", { class: "id", title: task.task_id }, shortId(task.task_id)),
      el("time", { class: "when" }),
    ),
  );
}

function update(node, task) {
  const [badge, what, why, , when] = node.firstElementChild.children;
  mark(badge, "data-tone", TONES[task.state]);
  say(badge.lastElementChild, stateWord(task));
  say(what, task.version ? `${task.model} ${task.version}` : task.model);
  say(why, reasonWord(task));
  mark(when, "datetime", task.finished_at ?? task.submitted_at);
  say(when, clock(task.finished_at ?? task.submitted_at));
}

const stateWord = (task) => task.state.charAt(0) + task.state.slice(1).toLowerCase();

function reasonWord(task) {
  if (task.state === "TERMINATED") return [task.reason?.replace("_", " "), task.error].filter(Boolean).join(": ");
  if (task.origin) return `from ${task.origin}`;
  return task.items > 1 ? plural(task.items, "item") : "";
}

const clock = (instant) => new Date(instant).toLocaleTimeString("en-GB");

const openTask = (id) => open(["Task", id], () => read(id));

async function read(id) {
  const address = `/v1/tasks/${id}`;
  const [task, results, why] = await Promise.all([ask(address), ask(`${address}/results`), ask(`${address}/explain`)]);
  return card(task, results.results, why);
}

function card(task, results, why) {
  const note = el("p", { class: "note", role: "status" });
  return [
    el("p", { class: "badge large", "data-tone": TONES[task.state] }, el("i", { class: "lamp", "aria-hidden": "true" }), stateWord(task), task.reason ? `: ${task.reason.replace("_", " ")}` : ""),
    task.error ? el("p", { class: "error" }, task.error) : null,
    el(
      "dl",
      { class: "facts" },
      fact("Model", [task.model, task.version].filter(Boolean).join(" ")),
      fact("Items", `${integer(task.items_done)} of ${integer(task.items)} done`),
      fact("Priority", `${task.priority}, queue ${task.queue}`),
      fact("Selector", task.selector),
      fact("Attempt", `${task.attempt} of ${task.max_attempts}`),
      fact("Origin", task.origin ?? "this API"),
      fact("Running at", task.agent),
      fact("Submitted", instant(task.submitted_at)),
      fact("Finished", instant(task.finished_at)),
    ),
    whySection(why),
    task.attempts.length ? attemptTable(task.attempts) : null,
    results.length ? resultTable(results) : null,
    el("p", { class: "actions" }, action(task, note), closeButton()),
    note,
  ];
}

const MOST_ROWS = 50;
const took = (microseconds) => (microseconds === null ? "" : seconds(microseconds / 1e6));

function attemptTable(attempts) {
  const rows = attempts.map((one) => ({
    bad: one.state === "FAILED" || one.state === "TERMINATED",
    cells: [one.attempt, one.state.toLowerCase(), `${one.site}/${one.agent}`, took(one.run_us), one.error ?? one.reason ?? ""],
  }));
  return table("Attempts", ["Attempt", "State", "Agent", "Ran", "Why"], rows);
}

function resultTable(results) {
  const rows = results.slice(0, MOST_ROWS).map((row) => ({
    bad: row.outcome !== "ok",
    cells: [row.item, row.outcome, row.label ?? row.error ?? "", row.score?.toFixed(3) ?? "", `${row.site}/${row.agent}`, took(row.run_us)],
  }));
  const caption = results.length > MOST_ROWS ? `Results: the first ${MOST_ROWS} of ${integer(results.length)}` : "Results";
  return table(caption, ["Item", "Outcome", "Label", "Score", "Agent", "Ran"], rows);
}

function action(task, note) {
  const [word, verb] = task.state === "TERMINATED" ? ["Run again", "retry"] : ["Cancel", "cancel"];
  if (ENDED.has(task.state) && verb === "cancel") return null;
  const act = async () => {
    try {
      await ask(`/v1/tasks/${task.task_id}/${verb}`, "POST");
      fill(["Task", task.task_id], await read(task.task_id));
    } catch (error) {
      say(note, error.message);
    }
  };
  return el("button", { type: "button", onclick: act }, word);
}
