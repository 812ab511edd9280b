// One agent looked at closely: every lane's books, what it says of itself, and what can be asked of it.

import { el, keyed, mark, say } from "./dom.js";
import { bytes, instant, integer, providers, seconds, signed } from "./format.js";

/** The row below an agent's own. */
export function detail(agent) {
  const head = ["Lane", "Numbered", "Committed", "Missing", "To come"];
  return el(
    "tr",
    { class: "detail" },
    el(
      "td",
      { colspan: 8 },
      el("ul", { class: "attention", "aria-label": "Needs attention" }),
      el(
        "div",
        { class: "sides" },
        el(
          "table",
          { class: "books" },
          el("caption", { class: "unseen" }, `Ledger of ${agent.site}/${agent.name}, lane by lane`),
          el("thead", {}, el("tr", {}, ...head.map((word, place) => el("th", { scope: "col", class: place ? "number" : null }, word)))),
          el("tbody"),
        ),
        el("dl", { class: "facts" }),
      ),
      el("p", { class: "actions" }, el("button", { type: "button", class: "drain" }), el("span", { class: "note", role: "status" })),
    ),
  );
}

export function updateDetail(node, agent) {
  keyed(node.querySelector(".attention"), agent.attention, (line) => line, (line) => el("li", {}, providers(line)), () => {});
  keyed(node.querySelector(".books tbody"), agent.lanes, (lane) => `${lane.direction} ${lane.lane}`, createLane, updateLane);
  keyed(
    node.querySelector(".facts"),
    facts(agent),
    ([name]) => name,
    ([name]) => el("div", {}, el("dt", {}, name), el("dd")),
    (row, [, value]) => say(row.lastElementChild, value),
  );
  const button = node.querySelector(".drain");
  say(button, agent.draining ? "Resume: give it the hub’s tasks again" : "Drain: give it no more of the hub’s tasks");
  button.onclick = () => setDraining(agent, node.querySelector(".actions .note"));
}

function createLane(lane) {
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("span", { class: "way", title: lane.direction === "up" ? "to the hub" : "to the agent" }, lane.direction === "up" ? "↑" : "↓"), ` ${lane.lane}`),
    ...["numbered", "committed", "missing", "waiting"].map((name) => el("td", { class: "number", "data-name": name })),
  );
}

function updateLane(row, lane) {
  for (const cell of row.querySelectorAll("td")) say(cell, integer(lane[cell.dataset.name]));
  mark(row, "data-tone", lane.missing ? "bad" : null);
}

function facts(agent) {
  const said = agent.telemetry;
  const always = [
    ["Epoch", String(agent.epoch)],
    ["Heard", agent.heard_s === null ? "never" : `${seconds(agent.heard_s)} ago`],
    ["First seen", instant(agent.first_seen)],
    ["Software", agent.software || "not said"],
  ];
  if (!said) return always;
  const clock = said.clock_offset_us === null ? "not measured" : `${signed(said.clock_offset_us)} ± ${((said.clock_error_us ?? 0) / 1000).toFixed(1)}`;
  return [
    ...always,
    ["Link up", seconds(said.link_up_s)],
    ["Predicted wait", seconds(said.predicted_wait_s)],
    ["Hub tasks held", `${integer(agent.leases)} of ${integer(said.capacity)}`],
    ["Jobs accepted", integer(said.jobs_total)],
    ["Jobs refused", integer(said.rejected_total)],
    ["Items run", integer(said.items_total)],
    ["Items failed", integer(said.failed_total)],
    ["Journal", bytes(said.journal_bytes)],
    ["Clock offset", clock],
  ];
}

async function setDraining(agent, note) {
  const what = agent.draining ? "resume" : "drain";
  const path = `/v1/agents/${encodeURIComponent(agent.site)}/${encodeURIComponent(agent.name)}/${what}`;
  try {
    const answer = await fetch(path, { method: "POST" });
    say(note, answer.ok ? "Done." : (await answer.json()).detail);
  } catch {
    say(note, "The hub cannot be reached.");
  }
}
