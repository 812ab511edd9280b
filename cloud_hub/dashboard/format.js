// Numbers and times as an operator reads them: short, and aligned by tabular figures.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const integer = (value) => whole.format(value ?? 0);

/** Items per second: a decimal while it means something. */
export function rate(value) {
  if (!value) return "0";
  return value < 100 ? tenth.format(value) : whole.format(value);
}

/** A duration in seconds, in the one unit that matters, or two where the second one still does. */
export function seconds(value) {
  if (value === null || value === undefined) return "never";
  if (value < 0.95) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${tenth.format(value)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  const hours = value / 3600;
  if (hours < 36) return `${Math.floor(hours)} h ${String(Math.floor((value % 3600) / 60)).padStart(2, "0")}`;
  return `${Math.round(hours / 24)} d`;
}

/** How long ago, coarsely: a heartbeat's age need not flicker. */
export function ago(value) {
  if (value === null || value === undefined) return "never heard";
  return value < 2 ? "just now" : `${seconds(value)} ago`;
}

/** An instant to the second, in UTC: what logs of all sites can be compared with. */
export const instant = (text) => (text ? new Date(text).toISOString().slice(0, 19).replace("T", " ") : "");

/** A signed number of milliseconds, from microseconds. */
export const signed = (microseconds) => `${microseconds < 0 ? "−" : "+"}${tenth.format(Math.abs(microseconds) / 1000)} ms`;

export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let place = 0;
  let size = value ?? 0;
  while (size >= 1000 && place < units.length - 1) {
    size /= 1000;
    place += 1;
  }
  return `${place && size < 100 ? tenth.format(size) : whole.format(size)} ${units[place]}`;
}

/** The end of a task's id: a UUIDv7 begins with the time, so its end is what tells two apart. */
export const shortId = (id) => id.slice(-8);

/** An epoch as a short word. */
export const epoch = (value) => Number(value).toString(16).slice(-6).padStart(6, "0");

/** Execution providers in a text, by the names that people use. */
export const providers = (text) => text.replaceAll("TensorrtExecutionProvider", "TensorRT").replaceAll("ExecutionProvider", "");

export const provider = (name) => providers(name || "unknown");

export const plural = (count, one, many = `${one}s`) => `${integer(count)} ${count === 1 ? one : many}`;
