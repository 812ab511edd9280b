// One rollout looked at closely: its terms, its agents, what was done why, and what can be asked of it.

import { ask, closeButton, fact, fill, open, table } from "./dialog.js";
import { el, say } from "./dom.js";
import { instant, integer, seconds } from "./format.js";

export const openRollout = (rollout) => open(title(rollout), () => read(rollout));

const title = (rollout) => ["Rollout", `${rollout.model} to ${rollout.version}`];
const address = (rollout) => `/v1/rollouts/${rollout.rollout_id}`;
const read = async (rollout) => card(await ask(address(rollout)));

function card(rollout) {
  const note = el("p", { class: "note", role: "status" });
  const wait = rollout.patience_s === null ? "" : `, paused after ${seconds(rollout.patience_s)}`;
  return [
    el("p", {}, rollout.reason),
    el(
      "dl",
      { class: "facts" },
      fact("Id", rollout.rollout_id),
      fact("For", rollout.selector || "all agents"),
      fact("Each stage", `${integer(rollout.min_results)} results, ${seconds(rollout.soak_s)} or more${wait}`),
      fact("If a gate fails", rollout.on_fail === "pause" ? "it is paused" : "all agents go back"),
      fact("Started", instant(rollout.started_at)),
      fact("Ended", instant(rollout.ended_at)),
    ),
    rollout.agents.length ? agentTable(rollout.agents) : null,
    historyTable(rollout),
    el("p", { class: "actions" }, ...actions(rollout, note), closeButton()),
    note,
  ];
}

const MOST_ROWS = 50;
const BACK = new Set(["refused", "rolled_back"]);
const word = (name) => (name ?? "").replaceAll("_", " ");

/** Those first that somebody should look at. */
function agentTable(agents) {
  const weight = (one) => (BACK.has(one.state) ? 0 : one.mode && one.state !== "ready" ? 1 : one.mode ? 2 : 3);
  const rows = [...agents]
    .sort((one, other) => weight(one) - weight(other))
    .slice(0, MOST_ROWS)
    .map((one) => ({
      bad: BACK.has(one.state),
      cells: [one.agent, one.online ? "online" : "offline", one.mode ?? "old version", word(one.state), integer(one.version_results), one.reason ?? ""],
    }));
  const caption = agents.length > MOST_ROWS ? `Agents: ${MOST_ROWS} of ${integer(agents.length)}` : "Agents";
  return table(caption, ["Agent", "Is", "Mode", "State", "Results", "Why"], rows);
}

function historyTable(rollout) {
  const rows = rollout.history.map((event) => ({
    bad: event.kind === "rolled_back",
    cells: [instant(event.at), word(event.kind), rollout.stages[event.stage] ?? "", event.by, event.reason ?? ""],
  }));
  return table("History", ["When, UTC", "What", "Stage", "By", "Why"], rows);
}

/** To go on in spite of the gates takes a command and a reason. What cannot be taken back takes two clicks. */
function actions(rollout, note) {
  if (rollout.ended_at !== null) return [];
  const button = (name, onclick) => el("button", { type: "button", onclick }, name);
  const paused = rollout.state === "paused";
  const back = button("Roll back", () => {
    if (back.textContent === SURE) act(rollout, "rollback", note);
    else say(back, SURE);
  });
  return [button(paused ? "Resume" : "Pause", () => act(rollout, paused ? "resume" : "pause", note)), back];
}

const SURE = "Roll back: all agents, now";

async function act(rollout, change, note) {
  try {
    await ask(`${address(rollout)}/${change}`, "POST", { reason: "on the dashboard" });
    fill(title(rollout), await read(rollout));
  } catch (error) {
    say(note, error.message);
  }
}
