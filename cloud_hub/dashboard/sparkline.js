// A line of the last minutes, scaled to its own peak; the newest value stands at the right edge.

import { svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 24;
const INSET = 2;

/** An empty sparkline, described by the text beside it. */
export function sparkline(extra = "") {
  return svg(
    "svg",
    { class: `spark ${extra}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "area" }),
    svg("path", { class: "line", "vector-effect": "non-scaling-stroke" }),
    svg("path", { class: "tip", "vector-effect": "non-scaling-stroke" }),
  );
}

/** Draw `values`, oldest first, on a place for `slots` of them. */
export function draw(spark, values, slots = 60) {
  const [area, line, tip] = spark.children;
  const shown = values.slice(-slots);
  if (shown.length < 2) {
    area.setAttribute("d", "");
    line.setAttribute("d", `M0 ${HEIGHT - INSET}H${WIDTH}`);
    tip.setAttribute("d", "");
    return;
  }
  const peak = Math.max(...shown, 1e-9);
  const step = WIDTH / (slots - 1);
  const start = WIDTH - step * (shown.length - 1);
  const points = shown.map((value, place) => {
    const y = HEIGHT - INSET - (value / peak) * (HEIGHT - 2 * INSET);
    return `${(start + place * step).toFixed(1)} ${y.toFixed(1)}`;
  });
  line.setAttribute("d", `M${points.join("L")}`);
  tip.setAttribute("d", `M${points.at(-1)}h0`); // of no length: its round cap is a dot that no scale distorts
  area.setAttribute("d", `M${start.toFixed(1)} ${HEIGHT}L${points.join("L")}L${WIDTH} ${HEIGHT}Z`);
}
