// The dashboard: one stream of snapshots from the hub, shown by the parts beside this file.

import { say } from "./dom.js";
import { showFleet } from "./fleet.js";
import { seconds } from "./format.js";
import { age, showParts, showRail } from "./rail.js";
import { Stream } from "./stream.js";
import { showTasks } from "./tasks.js";

const now = { fleet: null, tasks: null, received: 0, state: "connecting" };
const filter = { text: "", trouble: false };
const byId = (id) => document.getElementById(id);

function announce(sentence) {
  byId("announcer").textContent = sentence;
}

function draw() {
  if (!now.fleet) return;
  showRail(now.fleet);
  showFleet(now.fleet, filter, announce);
  if (now.tasks) showTasks(now.tasks, now.fleet.tasks.states);
  say(byId("hub-time"), `Hub ${now.fleet.at.slice(0, 19).replace("T", " ")} UTC`);
}

/** Whether what is shown is live must be plain at any moment: an old figure looks just like a new one. */
function drawState() {
  const quiet = Date.now() - now.received;
  document.body.dataset.stream = now.state;
  if (now.state === "live") {
    say(byId("stream-text"), age(quiet));
    byId("banner").hidden = true;
    say(byId("banner-text"), "");
  } else if (now.state === "lost") {
    say(byId("stream-text"), "Connection lost");
    const shown = now.received ? `What is shown is ${seconds(quiet / 1000)} old.` : "Nothing has been received yet.";
    byId("banner").hidden = false;
    say(byId("banner-text"), "Connection to the hub lost, trying again.");
    say(byId("banner-age"), shown);
  }
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
