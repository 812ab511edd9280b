// The dashboard: one stream of snapshots from the hub, shown by the parts beside this file.

import { say } from "./dom.js";
import { showAttention, showFleet } from "./fleet.js";
import { seconds } from "./format.js";
import { showQueues } from "./queues.js";
import { showParts, showRail } from "./rail.js";
import { showRollouts } from "./rollouts.js";
import { Stream } from "./stream.js";
import { showTasks } from "./tasks.js";

const now = { fleet: null, tasks: null, received: 0, state: "connecting" };
const filter = { text: "", trouble: false };
const STALE_MS = 6000;
const WORDS = { connecting: "Connecting…", live: "Live", stale: "Waiting", lost: "Connection lost" };
const TROUBLES = {
  stale: "The hub is there but cannot read its database.",
  lost: "Connection to the hub lost, trying again.",
};
const byId = (id) => document.getElementById(id);

function announce(sentence) {
  byId("announcer").textContent = sentence;
}

function draw() {
  if (!now.fleet) return;
  showRail(now.fleet);
  showFleet(now.fleet, filter, announce);
  showAttention(now.fleet);
  showRollouts(now.fleet.rollouts, now.fleet.at, announce);
  showQueues(now.fleet.queues, now.fleet.queue_count);
  if (now.tasks) showTasks(now.tasks, now.fleet.tasks.states);
  say(byId("hub-time"), `Hub ${now.fleet.at.slice(0, 19).replace("T", " ")} UTC`);
}

/** Whether what is shown is live must be plain at any moment: an old figure looks just like a new one. */
function drawState() {
  const quiet = Date.now() - now.received;
  const old = now.received ? `What is shown is ${seconds(Math.round(quiet / 1000))} old.` : "Nothing has been received yet.";
  const stale = now.state === "live" && now.received > 0 && quiet > STALE_MS;
  const state = stale ? "stale" : now.state;
  document.body.dataset.stream = state;
  byId("banner").hidden = state !== "stale" && state !== "lost";
  say(byId("banner-text"), TROUBLES[state] ?? "");
  say(byId("banner-age"), old);
  say(byId("stream-text"), WORDS[state]);
}

function setState(state) {
  if (state === now.state) return;
  now.state = state;
  drawState();
}

const stream = new Stream(
  "/v1/events",
  {
    hub: showParts,
    fleet(snapshot) {
      now.fleet = snapshot;
      now.received = Date.now();
      draw();
      drawState();
    },
    tasks(snapshot) {
      now.tasks = snapshot;
      if (now.fleet) showTasks(snapshot, now.fleet.tasks.states);
    },
  },
  setState,
);

byId("filter").addEventListener("input", () => {
  filter.text = byId("search").value.trim();
  filter.trouble = byId("only-trouble").checked;
  draw();
});
byId("filter").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("redraw", draw);
setInterval(drawState, 1000);
stream.open();
