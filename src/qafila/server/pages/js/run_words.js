// The agent's fixed words in the reader's language: states, endings, effects, kinds; and figures of what was used.

import { h } from "./elements.js";
import { number, percent, t } from "./i18n.js";
import { longText } from "./long_text.js";
import { seen } from "./unseen.js";

const STATES = {
  running: /* t */ "stateRunning",
  waiting: /* t */ "stateWaiting",
  done: /* t */ "stateDone",
  stopped: /* t */ "stateStopped",
  failed: /* t */ "stateFailed",
};
const ENDINGS = {
  steps: /* t */ "endedSteps",
  tokens: /* t */ "endedTokens",
  seconds: /* t */ "endedSeconds",
  cost: /* t */ "endedCost",
  circle: /* t */ "endedCircle",
  cancelled: /* t */ "endedCancelled",
  "handed over": /* t */ "endedHandedOver",
  failed: /* t */ "endedFailed",
};
const EFFECTS = {
  pure: /* t */ "effectPure",
  read: /* t */ "effectRead",
  write: /* t */ "effectWrite",
  egress: /* t */ "effectEgress",
  irrevocable: /* t */ "effectIrrevocable",
};
const STATUSES = {
  ok: /* t */ "statusOk",
  error: /* t */ "statusError",
  timeout: /* t */ "statusTimeout",
  refused: /* t */ "statusRefused",
  unknown: /* t */ "statusUnknown",
};
const KINDS = { profile: /* t */ "kindProfile", fact: /* t */ "kindFact", episode: /* t */ "kindEpisode" };

// A word that this page does not know yet is shown as the server gives it.
const word = (table, name) => (name in table ? t(table[name]) : String(name));

export const endingWord = (name) => word(ENDINGS, name);
export const effectWord = (name) => word(EFFECTS, name);
export const kindWord = (name) => word(KINDS, name);
export const KIND_NAMES = Object.keys(KINDS);

export const stateMark = (state) =>
  h("span", { class: `mark-state ${state in STATES ? state : ""}` }, word(STATES, state));
export const statusMark = (status) =>
  h("span", { class: `mark-state ${status === "ok" ? "done" : "failed"}` }, word(STATUSES, status));
export const effectMark = (effect) =>
  h("span", { class: `effect ${effect === "egress" || effect === "irrevocable" ? "grave" : ""}` }, effectWord(effect));

export const seconds = (value) => t("secondsShort", { n: number(value, value < 0.1 ? 3 : value < 10 ? 1 : 0) });

/** Tokens read, reused and written, as words. */
export function tokenWords({ read, cached, generated }) {
  const words = [t("tokensRead", { n: number(read) })];
  if (read > 0) words.push(t("tokensReused", { n: number(cached), share: percent(cached / read, 0) }));
  return [...words, t("tokensWritten", { n: number(generated) })];
}

export const figureLine = (words) =>
  h(
    "p",
    { class: "run-figures" },
    words.map((one) => h("span", {}, one)),
  );

/** A call on one line: its name, and its arguments cut short. */
export function callLine(name, args) {
  const MOST = 48;
  const values = Object.entries(args).map(([key, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const one = text.replace(/\s+/g, " ");
    return h(
      "span",
      { class: "argument" },
      `${key}: `,
      h("bdi", {}, seen(one.length > MOST ? `${one.slice(0, MOST)}…` : one)),
    );
  });
  return h("span", { class: "call-line" }, h("bdi", { class: "call-name", dir: "ltr" }, name), values);
}

/** A call's arguments, each in full; folded where `edits` show what they come to. */
export function argumentList(args, edits) {
  const rows = Object.entries(args).map(([key, value]) => [
    h("dt", {}, h("bdi", { dir: "ltr" }, key)),
    h("dd", {}, longText(typeof value === "string" ? value : JSON.stringify(value, null, 2))),
  ]);
  if (rows.length === 0) return null;
  const list = h("dl", { class: "arguments" }, rows.flat());
  return edits.length > 0 ? h("details", { class: "folded" }, h("summary", {}, t("arguments")), list) : list;
}

/** Where the values of a call come from that are not the reader's own; what was read is quoted, and may say anything. */
export function sourceList(sources) {
  if (sources.length === 0) return null;
  const line = ({ argument, value, told_by: by, quote }) =>
    h(
      "li",
      {},
      h("bdi", { class: "call-name", dir: "ltr" }, argument),
      " ",
      h("bdi", {}, seen(value)),
      " · ",
      by === null ? t("readNowhere") : by === "" ? t("readAtTheBeginning") : [t("readIn"), " ", h("bdi", { dir: "ltr" }, seen(by))],
      by !== null && h("blockquote", { dir: "auto" }, seen(quote)),
    );
  return h("ul", { class: "sources", "aria-label": t("sources") }, sources.map(line));
}
