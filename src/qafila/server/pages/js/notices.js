// What is said under an answer that did not end by itself, and what can be done about it.

import { h, icon } from "./elements.js";
import { number, t } from "./i18n.js";

const TITLES = {
  offline: /* t */ "errorOffline",
  broken: /* t */ "errorBroken",
  busy: /* t */ "errorBusy",
  context: /* t */ "errorContext",
  key: /* t */ "errorKey",
  model: /* t */ "errorModel",
  server: /* t */ "errorServer",
  request: /* t */ "errorRequest",
  page: /* t */ "errorPage",
};
const ADVICE = {
  offline: /* t */ "adviceOffline",
  broken: /* t */ "adviceBroken",
  busy: /* t */ "adviceBusy",
  context: /* t */ "adviceContext",
};
// The server's own words say more than ours where the request itself was wrong.
const QUOTED = new Set(["context", "model", "server", "request", "page"]);

/** The error of a node as an alert with a button that tries again; after "busy" it waits as long as the server asked. */
export function errorNotice(error, retry) {
  const label = h("span", {}, t("tryAgain"));
  const button = h("button", { type: "button", class: "button", on: { click: retry } }, icon("redo"), label);
  const due = error.at + (error.retryAfter ?? 0) * 1000;
  const tick = () => {
    const seconds = Math.ceil((due - Date.now()) / 1000);
    button.disabled = seconds > 0;
    label.textContent = seconds > 0 ? t("tryAgainIn", { n: number(seconds) }) : t("tryAgain");
    if (seconds > 0) setTimeout(tick, 250);
  };
  tick();
  return h(
    "div",
    { class: "notice error", role: "alert" },
    icon("warning"),
    h(
      "div",
      { class: "notice-text" },
      h("strong", {}, t(TITLES[error.kind])),
      ADVICE[error.kind] && h("p", {}, t(ADVICE[error.kind])),
      QUOTED.has(error.kind) && h("p", { class: "quoted", dir: "auto" }, error.message),
    ),
    button,
  );
}

const ENDINGS = {
  length: /* t */ "endedByLength",
  stopped: /* t */ "endedByStop",
  content_filter: /* t */ "endedByFilter",
};

/** A line for an answer that was cut; null where it ended by itself or is still being written. */
export function endingNotice(node, running) {
  if (running) return null;
  const key = node.finish === null ? /* t */ "endedByInterruption" : ENDINGS[node.finish];
  return key ? h("p", { class: "ending" }, t(key)) : null;
}
