// The live stream from the hub: opened again by itself, and never silently dead.

const SILENCE_MS = 6000; // the hub sends a snapshot each second
const FIRST_RETRY_MS = 1000;
const MAX_RETRY_MS = 15000;

export class Stream {
  #url;
  #events;
  #onState;
  #source = null;
  #watchdog = 0;
  #retry = 0;
  #retryMs = FIRST_RETRY_MS;

  /** `events`: a function for each name of event. `onState` is told "live" or "lost". */
  constructor(url, events, onState) {
    this.#url = url;
    this.#events = events;
    this.#onState = onState;
  }

  open() {
    clearTimeout(this.#retry);
    this.#source?.close();
    const source = new EventSource(this.#url);
    this.#source = source;
    for (const [name, handle] of Object.entries(this.#events)) {
      source.addEventListener(name, (event) => {
        this.#alive();
        handle(JSON.parse(event.data));
      });
    }
    source.onopen = () => this.#watch();
    source.onerror = () => this.#lost();
    this.#watch();
  }

  #alive() {
    this.#retryMs = FIRST_RETRY_MS;
    this.#onState("live");
    this.#watch();
  }

  #watch() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#lost(), SILENCE_MS);
  }

  // The browser's own reconnection gives up at an error status and does not notice a silent link, so it is not used.
  #lost() {
    clearTimeout(this.#watchdog);
    this.#source.close();
    this.#onState("lost");
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.open(), this.#retryMs * (0.5 + Math.random() / 2));
    this.#retryMs = Math.min(this.#retryMs * 2, MAX_RETRY_MS);
  }
}
