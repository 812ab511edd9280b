// Rollouts: how far each new version has come, stage by stage, and what its gates say.

import { el, keyed, mark, say } from "./dom.js";
import { integer, plural, seconds } from "./format.js";
import { openRollout } from "./rollout.js";

const STATES = {
  running: { word: "Running", tone: "calm" },
  paused: { word: "Paused", tone: "warn" },
  completed: { word: "Completed", tone: "good" },
  rolled_back: { word: "Rolled back", tone: "bad" },
};
const VERDICTS = {
  passed: { word: "passed", tone: "good" },
  failed: { word: "failed", tone: "bad" },
  open: { word: "open", tone: null },
};
const NOT_NEEDED = { word: "not needed", tone: null };

const known = new Map();

/** Show the rollouts at the instant `at`, and say what became of one to those who listen rather than look. */
export function showRollouts(rollouts, at, announce) {
  document.getElementById("rollouts").hidden = rollouts.length === 0;
  const active = rollouts.filter(isActive).length;
  say(document.getElementById("rollouts-note"), active ? `${integer(active)} under way` : "none under way");
  keyed(document.getElementById("rollouts-list"), rollouts, (one) => one.rollout_id, create, (node, one) => update(node, one, at));
  for (const one of rollouts) tell(one, announce);
}

const isActive = (rollout) => rollout.ended_at === null;

function tell(rollout, announce) {
  const now = `${rollout.state} ${rollout.stage}`;
  const before = known.get(rollout.rollout_id);
  known.set(rollout.rollout_id, now);
  if (before === undefined || before === now) return;
  const where = isActive(rollout) ? `, stage ${rollout.stages[rollout.stage]}` : "";
  announce(`Rollout of ${rollout.model} ${rollout.version}: ${STATES[rollout.state].word.toLowerCase()}${where}`);
}

function create(rollout) {
  return el(
    "li",
    { class: "rollout", title: rollout.rollout_id },
    el(
      "div",
      { class: "about" },
      el(
        "div",
        { class: "title" },
        el("h3", {}, el("button", { type: "button", onclick: () => openRollout(rollout) }, `${rollout.model} `, el("span", {}, `to ${rollout.version}`))),
        el("p", { class: "badge" }, el("i", { class: "lamp", "aria-hidden": "true" }), el("span")),
      ),
      el("p", { class: "sub where" }),
      el("p", { class: "reason" }),
    ),
    el("ol", { class: "stages", "aria-label": "Stages" }),
    el("ul", { class: "gates", "aria-label": "Gates of this stage" }),
  );
}

function update(node, rollout, at) {
  const find = (name) => node.querySelector(`.${name}`);
  const state = STATES[rollout.state];
  mark(node, "data-state", rollout.state);
  mark(find("badge"), "data-tone", state.tone);
  say(find("badge").lastElementChild, state.word);
  say(find("where"), `${rollout.selector || "all agents"} · ${since(rollout, at)}`);
  say(find("reason"), rollout.reason ?? "");
  keyed(find("stages"), stages(rollout), (stage) => stage.place, createStage, updateStage);
  const gates = isActive(rollout) ? rollout.progress[rollout.stage].judgements : [];
  mark(find("gates"), "hidden", gates.length === 0);
  keyed(find("gates"), gates, (one) => one.gate, createGate, updateGate);
}

/** The hub's clock says what time it is: the browser's may be wrong. */
function since(rollout, at) {
  const past = (instant) => seconds(Math.max(0, (Date.parse(at) - Date.parse(instant)) / 1000));
  return isActive(rollout) ? `in this stage for ${past(rollout.stage_since)}` : `ended ${past(rollout.ended_at)} ago`;
}

/** Each stage with how far it is: behind, now, or ahead; of one that was rolled back, the last that was reached is now. */
function stages(rollout) {
  return rollout.stages.map((text, place) => {
    const reached = place === rollout.stage && rollout.state !== "completed";
    const way = reached ? "now" : place <= rollout.stage ? "behind" : "ahead";
    const found = isActive(rollout) ? rollout.progress[place] : null;
    return { text, place, way, found, heard: isActive(rollout) ? WAYS[way] : ENDS[way], least: rollout.min_results };
  });
}

const WAYS = { behind: "passed", now: "now", ahead: "to come" };
const ENDS = { behind: "passed", now: "its last", ahead: "not reached" };

function createStage(stage) {
  return el(
    "li",
    {},
    el("b", {}, stage.text),
    el("span", { class: "unseen" }),
    el("span", { class: "ready" }),
    el("span", { class: "results" }),
    el("progress", { max: 1, "aria-label": `Results of stage ${stage.text}` }),
  );
}

function updateStage(node, { text, way, found, heard, least }) {
  const [, aside, ready, results, bar] = node.children;
  mark(node, "data-way", way);
  mark(node, "aria-current", way === "now" ? "step" : null);
  say(aside, ` (${heard})`);
  say(ready, found ? readyWord(found, way) : "");
  say(results, found ? resultsWord(found, way, least, SHADOW.test(text)) : "");
  bar.hidden = way !== "now" || !found;
  if (found) bar.value = least ? Math.min(1, found.new_results / least) : 1;
}

const readyWord = (found, way) => (way === "ahead" ? plural(found.agents, "agent") : `${integer(found.ready)} of ${plural(found.agents, "agent")} ready`);

const SHADOW = /(^|\/)shadow(:|$)/;

function resultsWord(found, way, least, shadows) {
  if (way === "ahead") return "";
  const count = way === "now" ? `${integer(found.new_results)} of ${integer(least)}` : integer(found.new_results);
  return `${count} ${shadows ? "compared" : "results"}`;
}

function createGate(judgement) {
  const { name, limit } = parts(judgement.gate);
  return el(
    "li",
    {},
    el("span", { class: "badge" }, el("i", { class: "lamp", "aria-hidden": "true" }), el("span")),
    el("b", {}, name),
    el("span", { class: "value" }),
    el("span", { class: "of" }, limit),
  );
}

function updateGate(node, judgement) {
  const [badge, , value] = node.children;
  const verdict = judgement.needed ? VERDICTS[judgement.verdict] : NOT_NEEDED;
  mark(node, "data-tone", verdict.tone);
  mark(node, "title", judgement.said);
  mark(badge, "data-tone", verdict.tone);
  say(badge.lastElementChild, verdict.word);
  say(value, judgement.value === null ? "–" : figure(judgement.value, parts(judgement.gate).unit));
}

/** A gate such as `errors<=1%`, taken apart. */
function parts(gate) {
  const [, name, sign, number, unit] = /^(\w+)([<>]=)([\d.]+)(%|x|)$/.exec(gate) ?? [null, gate, "", "", ""];
  return { name: name.replaceAll("_", " "), unit, limit: sign && `${sign === "<=" ? "at most" : "at least"} ${number}${SUFFIX[unit]}` };
}

const SUFFIX = { "%": " %", x: " ×", "": "" };

/** A measured value, which has the unit of its limit. */
const figure = (value, unit) => `${value.toFixed(unit === "%" ? 1 : 2)}${SUFFIX[unit]}`;
