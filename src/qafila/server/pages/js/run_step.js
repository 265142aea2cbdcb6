// One step of a run: the model's answer, the calls in it, and what came of them. Folded, a line says what happened.

import { explanation, oddsView } from "./decision_view.js";
import { diffView } from "./diff_view.js";
import { h } from "./elements.js";
import { number, t } from "./i18n.js";
import { longText } from "./long_text.js";
import { ownReason, reasonWords } from "./reason_words.js";
import { argumentList, callLine, figureLine, seconds, statusMark, tokenWords } from "./run_words.js";

function parsed(text) {
  if (typeof text !== "string") return text ?? {};
  try {
    return JSON.parse(text || "{}");
  } catch {
    return { "": text };
  }
}

function resultView({ text, whole, coded }) {
  const own = ownReason(coded);
  return own === null ? longText(text, whole) : h("p", { class: "why" }, own);
}

/** A call within a step, as far as its events have come. */
class Call {
  constructor({ id, function: called }) {
    this.id = id;
    this.name = called.name;
    this.arguments = parsed(called.arguments);
    this.edits = [];
    this.asked = null;
    this.decided = null;
    this.observed = null;
  }

  add(event) {
    if (event.kind === "intended" || event.kind === "asked") this.edits = (event.intent ?? event).edits ?? [];
    if (event.kind === "asked") this.asked = event;
    if (event.kind === "decided") this.decided = event;
    if (event.kind === "observed") this.observed = event;
  }

  mark() {
    if (this.observed !== null) return statusMark(this.observed.observation.status);
    const waits = this.asked !== null && this.decided === null;
    return h(
      "span",
      { class: `mark-state ${waits ? "waiting" : "running"}` },
      t(waits ? /* t */ "stateWaiting" : /* t */ "stateRunning"),
    );
  }

  body() {
    const { decided, observed } = this;
    const said = decided && t(decided.allowed ? /* t */ "wasAllowed" : /* t */ "wasDenied");
    return h(
      "section",
      { class: "call" },
      h("h3", {}, h("bdi", { class: "call-name", dir: "ltr" }, this.name), this.mark()),
      this.asked && h("p", { class: "why" }, `${t("whyAsked")} `, reasonWords(this.asked.why, this.asked.coded)),
      decided && h("p", { class: "why" }, said, decided.reason !== "" && [" ", h("bdi", {}, decided.reason)]),
      this.edits.map(diffView),
      argumentList(this.arguments, this.edits),
      observed && h("h4", {}, t("result")),
      observed && resultView(observed.observation),
    );
  }
}

const wordsOf = ({ content }) =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");

export class RunStep {
  /** @param recorded the event of the answer. @param actions {fork(number)} */
  constructor(run, recorded, actions) {
    const { event, number: at } = recorded;
    this.number = recorded.step;
    this.event = event;
    this.calls = (event.message.tool_calls ?? []).map((call) => new Call(call));
    const { button, place } = explanation(run, at);
    const fork = h(
      "button",
      { type: "button", class: "button small", on: { click: () => actions.fork(at) } },
      t("fork"),
    );
    this.summary = h("summary");
    this.parts = h("div");
    this.element = h(
      "details",
      { class: "step", data: { event: String(at) } },
      this.summary,
      h("div", { class: "step-body" }, this.parts, place, h("div", { class: "step-tools" }, button, fork)),
    );
    this.draw();
  }

  /** Whether the event is of one of this step's calls, in which case it is shown. */
  add(event) {
    const id = event.intent?.call ?? event.call;
    const call = this.calls.find((one) => one.id === id);
    if (call === undefined) return false;
    call.add(event);
    this.draw();
    return true;
  }

  draw() {
    const { event, calls } = this;
    const spent = calls.reduce((sum, call) => sum + (call.observed?.seconds ?? 0), event.spent.seconds);
    const what =
      calls.length === 0
        ? h("span", {}, t("answersInWords"))
        : calls.map((call) => h("span", { class: "summary-call" }, callLine(call.name, call.arguments), call.mark()));
    this.summary.replaceChildren(
      h("span", { class: "step-number" }, h("span", { class: "offscreen" }, `${t("step")} `), number(this.number)),
      h("span", { class: "step-what" }, what),
      h("span", { class: "step-seconds" }, seconds(spent)),
    );
    const words = wordsOf(event.message);
    const spentWords = [
      ...tokenWords(event.spent),
      t("thoughtFor", { n: number(event.spent.seconds, 2), first: number(event.spent.first_token_seconds, 2) }),
    ];
    this.parts.replaceChildren(
      ...[
        words !== "" && h("p", { class: "step-words", dir: "auto" }, words),
        ...calls.map((call) => call.body()),
        oddsView(event.decision, calls[0]?.name ?? ""),
        figureLine(spentWords),
      ].filter(Boolean),
    );
  }
}
