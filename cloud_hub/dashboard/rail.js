// The way of the data as five figures: accepted, run, synced, handed over, recorded.

import { el, keyed, mark, say } from "./dom.js";
import { integer, plural, rate, seconds } from "./format.js";
import { draw, sparkline } from "./sparkline.js";

const HISTORY = 120; // values that the hub keeps

/** The stations, each with a figure, what it counts, and a line of context. `tone` colours what needs eyes. */
function stations(fleet) {
  const { totals } = fleet;
  const { ledger } = totals;
  const { states } = fleet.tasks;
  const away = totals.agents - totals.online;
  return [
    {
      name: "Accepted",
      figure: integer(totals.jobs),
      about: "jobs from devices",
      note: totals.rejected ? `${integer(totals.rejected)} refused` : "none refused",
    },
    {
      name: "At the edge",
      figure: rate(totals.items_per_s),
      about: "items per second",
      note: `${integer(totals.queued)} waiting · ${integer(totals.running)} running`,
      history: fleet.throughput["*"] ?? [],
      span: `last ${seconds(HISTORY * fleet.every_s)}`,
    },
    {
      name: "To sync",
      figure: integer(ledger.waiting),
      about: ledger.waiting === 1 ? "record on its way" : "records on their way",
      note: away ? `${plural(away, "agent")} out of reach` : "all agents in reach",
      tone: away ? "warn" : null,
    },
    {
      name: "At the hub",
      figure: integer((states.QUEUED ?? 0) + (states.PROCESSING ?? 0)),
      about: "tasks to be done",
      note: `${integer(states.QUEUED)} queued · ${integer(states.PROCESSING)} running`,
    },
    {
      name: "Recorded",
      figure: integer(ledger.committed),
      about: "records in PostgreSQL",
      note: `${integer(ledger.missing)} missing of ${integer(ledger.numbered)}`,
      tone: ledger.missing ? "bad" : "good",
    },
  ];
}

function create(station) {
  return el(
    "li",
    {},
    el("h2", {}, station.name),
    el("p", { class: "figure" }),
    el("p", { class: "about" }),
    el("p", { class: "note" }),
    station.history ? sparkline("wide") : null,
    station.history ? el("p", { class: "span" }) : null,
  );
}

function update(node, station) {
  const [, figure, about, note, spark, span] = node.children;
  say(figure, station.figure);
  say(about, station.about);
  say(note, station.note);
  mark(note, "data-tone", station.tone);
  if (!spark) return;
  draw(spark, station.history, HISTORY);
  say(span, station.span);
}

export function showRail(fleet) {
  keyed(document.getElementById("rail"), stations(fleet), (station) => station.name, create, update);
}

const PARTS = { postgresql: "PostgreSQL", broker: "Broker", redis: "Redis" };

/** The lamps of what the hub itself stands on. */
export function showParts(parts) {
  const words = { ok: "connected", down: "cannot be reached", none: "not used" };
  keyed(
    document.getElementById("parts"),
    Object.entries(parts).map(([name, state]) => ({ name: PARTS[name] ?? name, state })),
    (part) => part.name,
    (part) => el("li", {}, el("i", { class: "lamp", "aria-hidden": "true" }), part.name, el("span", { class: "unseen" })),
    (node, part) => {
      const tone = { ok: "good", none: null, down: part.name === "Redis" ? "warn" : "bad" }[part.state];
      mark(node, "data-tone", tone);
      mark(node, "title", `${part.name}: ${words[part.state]}`);
      say(node.lastElementChild, ` ${words[part.state]}`);
    },
  );
}
