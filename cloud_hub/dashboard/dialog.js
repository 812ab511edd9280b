// The one dialog of the page: what was asked of the hub about one thing, and what can be done about it.

import { el } from "./dom.js";

const dialog = () => document.getElementById("dialog");

/** Open the dialog and fill it with what `read()` returns, a list of elements; what goes wrong is said in it. */
export async function open(title, read) {
  dialog().replaceChildren(heading(title), el("p", { class: "note" }, "Loading…"));
  dialog().showModal();
  try {
    fill(title, await read());
  } catch (error) {
    fill(title, [el("p", { class: "note" }, error.message), el("p", { class: "actions" }, closeButton())]);
  }
}

/** Fill it anew, as after something was done. */
export function fill(title, parts) {
  dialog().replaceChildren(heading(title), ...parts.filter(Boolean));
}

/** A title is a word and what it names. */
const heading = ([word, name]) => el("h2", { id: "dialog-title" }, `${word} `, el("code", {}, name));

export const closeButton = () => el("button", { type: "button", class: "quiet", onclick: () => dialog().close() }, "Close");

/** The hub's answer. Throws an error with a sentence for people. */
export async function ask(path, method = "GET", body = null) {
  const sent = body === null ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const answer = await fetch(path, { method, ...sent }).catch(() => {
    throw new Error("The hub cannot be reached.");
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.detail);
  return found;
}

/** A table of `rows`, each `{ cells, bad }`. */
export function table(caption, head, rows) {
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: "books" },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...head.map((word) => el("th", { scope: "col" }, word)))),
      el("tbody", {}, ...rows.map((row) => el("tr", { "data-tone": row.bad ? "bad" : null }, ...row.cells.map((value) => el("td", {}, String(value)))))),
    ),
  );
}

/** A row of a list of facts; null if there is none. */
export const fact = (name, value) =>
  value === null || value === undefined || value === "" ? null : el("div", {}, el("dt", {}, name), el("dd", {}, String(value)));
