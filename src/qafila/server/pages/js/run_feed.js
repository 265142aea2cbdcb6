// Follows a run as it goes on, over broken connections too.

import { runEvents } from "./agent_api.js";

const SOON_MS = 500;
const LATE_MS = 10_000;
const PASSING = new Set(["offline", "broken", "busy"]);

export class RunFeed {
  #abort = null;
  #last = null;

  /** @param listener {onEvent(recorded), onEnd(), onLost(lost), onError(error)} */
  constructor(id, listener) {
    this.id = id;
    this.listener = listener;
  }

  /** Read what there is after the last event that came, and go on until the run ends or waits. */
  start() {
    if (this.#abort === null) this.#follow((this.#abort = new AbortController()));
  }

  stop() {
    this.#abort?.abort();
    this.#abort = null;
  }

  async #follow(abort) {
    let wait = SOON_MS;
    for (;;) {
      try {
        for await (const recorded of runEvents(this.id, this.#last, abort.signal)) {
          this.#last = recorded.number;
          wait = SOON_MS;
          this.listener.onLost(false);
          this.listener.onEvent(recorded);
        }
        this.#abort = null;
        this.listener.onLost(false);
        this.listener.onEnd();
        return;
      } catch (error) {
        if (abort.signal.aborted) return;
        if (!PASSING.has(error.kind)) {
          this.#abort = null;
          this.listener.onError(error);
          return;
        }
        this.listener.onLost(true);
      }
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(LATE_MS, wait * 2);
    }
  }
}
