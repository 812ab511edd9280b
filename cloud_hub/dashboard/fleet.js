// Sites and their agents: one row each, one row more for whoever looks closer.

import { detail, updateDetail } from "./agent.js";
import { el, keyed, mark, say } from "./dom.js";
import { ago, epoch, integer, plural, provider, providers, rate, seconds } from "./format.js";
import { draw, sparkline } from "./sparkline.js";

const STATES = {
  online: { word: "Online", tone: "good" },
  silent: { word: "Silent", tone: "warn" },
  offline: { word: "Offline", tone: "bad" },
};

const open = new Set();
const known = new Map();

const keyOf = (agent) => `${agent.site}/${agent.name}`;

/** Show the sites that pass the filter, and say what changed to those who listen rather than look. */
export function showFleet(fleet, filter, announce) {
  const table = document.querySelector("table.fleet");
  const sites = fleet.sites
    .map((site) => ({ ...site, agents: site.agents.filter((agent) => passes(agent, filter)) }))
    .filter((site) => site.agents.length);
  keyed(table, sites, (site) => site.site, createSite, (body, site) => updateSite(body, site, fleet.throughput));

  const { totals } = fleet;
  const note = document.getElementById("fleet-note");
  say(note, `${integer(totals.online)} of ${plural(totals.agents, "agent")} online at ${plural(fleet.sites.length, "site")}`);
  const empty = document.getElementById("fleet-empty");
  empty.hidden = sites.length > 0;
  table.hidden = sites.length === 0;
  say(empty, emptiness(totals, filter));
  for (const site of fleet.sites) for (const agent of site.agents) tell(agent, announce);
}

const MOST_LINES = 6;

/** What somebody should look at first, agent by agent; each leads to its agent. Nothing shows while all is well. */
export function showAttention(fleet) {
  const lines = fleet.sites
    .flatMap((site) => site.agents)
    .flatMap((agent) => agent.attention.map((line, place) => ({ agent, line, place })));
  document.getElementById("attention").hidden = lines.length === 0;
  const more = lines.length - MOST_LINES;
  say(document.getElementById("attention-note"), more > 0 ? `${integer(lines.length)}, ${integer(more)} not shown here` : "");
  keyed(
    document.getElementById("attention-list"),
    lines.slice(0, MOST_LINES),
    ({ agent, place }) => `${keyOf(agent)} ${place}`,
    ({ agent }) => el("li", {}, el("button", { type: "button", onclick: () => reveal(agent) }, el("b", {}, keyOf(agent)), " ", el("span"))),
    (node, { line }) => say(node.querySelector("span"), providers(line)),
  );
}

function emptiness(totals, filter) {
  if (!totals.agents) return "No agent has reported yet. One appears here as soon as it connects to the broker.";
  return filter.trouble && !filter.text ? "Nothing needs attention." : "No agent matches.";
}

function passes(agent, filter) {
  if (filter.trouble && agent.attention.length === 0) return false;
  const words = [agent.site, agent.name, ...(agent.telemetry?.models ?? []).map((model) => model.name)];
  return words.join(" ").toLowerCase().includes(filter.text.toLowerCase());
}

function tell(agent, announce) {
  const before = known.get(keyOf(agent));
  known.set(keyOf(agent), agent.status);
  if (before && before !== agent.status) announce(`Agent ${keyOf(agent)} is ${agent.status}`);
}

function createSite(site) {
  const id = `site-${site.site}`;
  return el(
    "tbody",
    { "aria-labelledby": id },
    el("tr", { class: "site" }, el("th", { scope: "rowgroup", colspan: 8, id }, site.site, el("span", { class: "note" }))),
  );
}

function updateSite(body, site, throughput) {
  const online = site.agents.filter((agent) => agent.status === "online").length;
  const busy = site.agents.reduce((sum, agent) => sum + (agent.telemetry?.items_per_s ?? 0), 0);
  say(body.querySelector(".site .note"), `${online} of ${site.agents.length} online · ${rate(busy)} items/s`);
  const rows = site.agents.flatMap((agent) => (open.has(keyOf(agent)) ? [{ agent }, { agent, detail: true }] : [{ agent }]));
  keyed(
    body,
    rows,
    (row) => (row.detail ? `${keyOf(row.agent)} detail` : keyOf(row.agent)),
    (row) => (row.detail ? detail(row.agent) : createAgent(row.agent)),
    (node, row) => (row.detail ? updateDetail(node, row.agent) : updateAgent(node, row.agent, throughput[keyOf(row.agent)])),
  );
}

function createAgent(agent) {
  const cell = (name, label, ...children) => el("td", { class: name, "data-label": label }, ...children);
  return el(
    "tr",
    { class: "agent" },
    el(
      "th",
      { scope: "row" },
      el("button", { type: "button", class: "name", "aria-expanded": "false", onclick: () => toggle(agent) }, agent.name),
      el("span", { class: "sub epoch", title: "Boot epoch: a new one for each fresh journal" }),
    ),
    cell("state", "State", el("span", { class: "badge" }, el("i", { class: "lamp", "aria-hidden": "true" }), el("span")), el("span", { class: "sub" })),
    cell("models", "Models", el("ul")),
    cell("flow", "Throughput", sparkline(), el("span", { class: "figure" }), el("span", { class: "sub" }, "items/s")),
    cell("number queue", "Queue", el("span"), el("span", { class: "sub" })),
    cell("number overflow", "Overflow", el("span"), el("span", { class: "sub" })),
    cell("number sync", "To sync", el("span"), el("span", { class: "sub" })),
    cell("ledger", "Ledger", el("ul")),
  );
}

function updateAgent(row, agent, history) {
  const said = agent.telemetry;
  const state = STATES[agent.status];
  mark(row, "data-status", agent.status);
  const button = row.querySelector(".name");
  mark(button, "aria-expanded", String(open.has(keyOf(agent))));
  say(row.querySelector(".epoch"), `epoch ${epoch(agent.epoch)}`);

  const badge = row.querySelector(".badge");
  mark(badge, "data-tone", agent.draining ? "calm" : state.tone);
  mark(badge, "title", agent.attention.join("\n") || null);
  say(badge.lastElementChild, agent.draining && agent.status === "online" ? "Draining" : state.word);
  say(row.querySelector(".state .sub"), linkWord(agent));

  keyed(
    row.querySelector(".models ul"),
    said?.models ?? [],
    (model) => `${model.name}@${model.version}`,
    createModel,
    updateModel,
  );

  draw(row.querySelector(".spark"), history ?? []);
  const idle = agent.status !== "online";
  say(row.querySelector(".flow .figure"), said && !idle ? rate(said.items_per_s) : "–");
  figure(row, "queue", said && integer(said.queued), said?.running ? `${integer(said.running)} running` : "");
  figure(row, "overflow", said && integer(said.overflowed_total), said?.reclaimed_total ? `${integer(said.reclaimed_total)} back` : "");
  figure(row, "sync", said && integer(agent.to_sync), "");
  mark(row.querySelector(".sync"), "data-tone", agent.to_sync > 1000 ? "warn" : null);
  keyed(row.querySelector(".ledger ul"), books(agent.lanes), (book) => book.name, createBook, updateBook);
}

function figure(row, name, value, sub) {
  const [main, small] = row.querySelector(`.${name}`).children;
  say(main, value ?? "–");
  say(small, sub);
}

function linkWord(agent) {
  if (agent.status === "online") return agent.telemetry?.link_up_s ? `link up ${seconds(agent.telemetry.link_up_s)}` : "";
  return `heard ${ago(agent.heard_s)}`;
}

const createModel = () => el("li", {}, el("span", { class: "model" }), el("span", { class: "provider" }));

function updateModel(node, model) {
  const fell = model.wanted && model.wanted !== model.provider;
  say(node.firstElementChild, `${model.name} ${model.version}`);
  say(node.lastElementChild, fell ? `${provider(model.provider)}, not ${provider(model.wanted)}` : provider(model.provider));
  mark(node, "data-tone", fell ? "warn" : null);
  mark(node, "title", fell ? `${model.name} should run on ${model.wanted} and runs on ${model.provider}` : model.provider);
}

/** The up lanes by name, all generations together: what an operator asks of a ledger. */
export function books(lanes) {
  const byName = new Map();
  for (const lane of lanes.filter((lane) => lane.direction === "up")) {
    const name = lane.lane.replace(/\.\d+$/, "");
    const book = byName.get(name) ?? { name, numbered: 0, committed: 0, missing: 0, waiting: 0 };
    for (const count of ["numbered", "committed", "missing", "waiting"]) book[count] += lane[count];
    byName.set(name, book);
  }
  return [...byName.values()].sort((one, other) => one.name.localeCompare(other.name));
}

const createBook = () => el("li", {}, el("span", { class: "lane" }), el("span", { class: "missing" }), el("span", { class: "of" }));

function updateBook(node, book) {
  const [lane, missing, of] = node.children;
  say(lane, book.name);
  say(missing, `${integer(book.missing)} missing`);
  say(of, `of ${integer(book.numbered)}`);
  mark(node, "data-tone", book.missing ? "bad" : null);
  mark(node, "title", `${integer(book.committed)} committed, ${integer(book.waiting)} to come`);
}

function reveal(agent) {
  open.add(keyOf(agent));
  document.dispatchEvent(new CustomEvent("redraw"));
  const row = document.querySelector(`tr.agent[data-key="${CSS.escape(keyOf(agent))}"]`);
  row?.scrollIntoView({ block: "center", behavior: "smooth" });
  row?.querySelector(".name").focus({ preventScroll: true });
}

function toggle(agent) {
  const key = keyOf(agent);
  if (!open.delete(key)) open.add(key);
  document.dispatchEvent(new CustomEvent("redraw"));
}
