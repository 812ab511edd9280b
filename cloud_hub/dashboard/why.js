// Why a task waits, and why it went where it went, in sentences.

import { el } from "./dom.js";
import { integer, plural, rate, seconds } from "./format.js";

/** A section that tells what `explanation` says; null if there is nothing to tell. */
export function whySection({ waiting, decisions }) {
  const parts = [...(waiting ? waitingLines(waiting) : []), ...decisions.flatMap(decisionLines)];
  if (!parts.length) return null;
  return el("section", { class: "whys", "aria-label": "Why" }, el("h3", {}, waiting ? "Why it waits" : "Why it went there"), el("ul", {}, ...parts));
}

const line = (text, strong = false) => el("li", { class: strong ? "cause" : null }, text);

function waitingLines(waiting) {
  const { before } = waiting;
  const more = before.same_is_more ? "more than " : "";
  const raised = waiting.effective_priority > waiting.priority;
  const ahead = `Before it: ${integer(before.higher)} of higher priorities, ${more}${integer(before.same)} older ones of its kind, ${integer(before.beside)} of its priority beside it.`;
  return [
    ...waiting.causes.map((cause) => line(sentence(cause.text), true)),
    line(ahead),
    line(raised ? `Its wait has raised its priority from ${waiting.priority} to ${waiting.effective_priority}.` : `Its priority is ${waiting.priority}.`),
    waiting.able_count ? line(`It could run at ${waiting.able.slice(0, 3).map(able).join(", ")}${waiting.able_count > 3 ? ` and ${integer(waiting.able_count - 3)} more` : ""}.`) : null,
  ].filter(Boolean);
}

const able = (one) => `${one.agent} (room for ${integer(one.credits)}, ${rate(one.items_per_s)} items/s)`;

function decisionLines(decision) {
  if (decision.predicted_s === null) return [];
  const others = decision.others.map((one) => `${one.agent} in ${seconds(one.predicted_s)}`).join(", ");
  const rest = others ? `; others: ${others}` : "";
  const room = decision.stopping ? " It is asked to make room." : "";
  return [line(`Attempt ${decision.attempt} went to ${decision.agent}: predicted in ${seconds(decision.predicted_s)}, of ${plural(decision.able ?? 1, "agent")}${rest}.${room}`)];
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
