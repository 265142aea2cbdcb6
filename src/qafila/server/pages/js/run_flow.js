// A run from top to bottom: its steps, what was said meanwhile, and its answers.

import { h, icon } from "./elements.js";
import { number, t } from "./i18n.js";
import { longText } from "./long_text.js";
import { MarkdownStream } from "./markdown_stream.js";
import { reasonWords } from "./reason_words.js";
import { RunStep } from "./run_step.js";
import { effectMark, endingWord } from "./run_words.js";

const note = (text, detail = "", coded = null) => h("p", { class: "run-note" }, `${text} `, reasonWords(detail, coded));

/** What the run began with. */
function setup(event) {
  const tools = Object.entries(event.effects).map(([name, effect]) =>
    h("li", {}, h("bdi", { class: "call-name", dir: "ltr" }, name), effectMark(effect)),
  );
  return h(
    "details",
    { class: "step setup" },
    h("summary", {}, h("span", { class: "step-what" }, t("setup"))),
    h(
      "div",
      { class: "step-body" },
      h("p", {}, `${t("workspace")} `, h("bdi", { class: "path", dir: "ltr" }, event.workspace)),
      event.budget.steps !== null && h("p", {}, t("budgetOf", { n: number(event.budget.steps) })),
      h("p", {}, t("seedWas", { n: event.seed })),
      h("h3", {}, t("tools")),
      h("ul", { class: "tool-names" }, tools),
      h("h3", {}, t("partInstructions")),
      longText(event.system),
    ),
  );
}

function answerView(event) {
  const prose = h("div", { class: "prose" });
  new MarkdownStream(prose).finish(event.answer);
  return h(
    "article",
    { class: "run-answer", "aria-label": t("answer") },
    h("header", { class: "answer-name" }, icon("llama", "mark"), t("answer")),
    prose,
  );
}

export class RunFlow {
  #step = null;
  #ended = null;
  #open = false;

  /** @param actions {fork(number)} */
  constructor(run, actions) {
    this.run = run;
    this.actions = actions;
    this.element = h("div", { class: "flow" });
  }

  add(recorded) {
    const { event } = recorded;
    const parts = this.#parts(recorded, event);
    this.element.append(...parts.filter(Boolean));
  }

  #parts(recorded, event) {
    switch (event.kind) {
      case "began":
        return [setup(event)];
      case "answered":
        this.#step = new RunStep(this.run, recorded, this.actions);
        this.#step.element.open = this.#open;
        return [this.#step.element];
      case "steered":
        return [h("div", { class: "message user" }, h("div", { class: "bubble", dir: "auto" }, event.text))];
      case "undone":
        return [note(t("undone"))];
      case "resumed": {
        const waited = this.#ended === "waiting" || this.#ended === null;
        return waited ? [] : [note(t("goesOn"))];
      }
      case "ended":
        this.#ended = event.reason;
        return [
          event.answer !== "" && event.reason !== "waiting" && answerView(event),
          event.reason === "done"
            ? event.detail !== "" && note("", event.detail, event.coded)
            : event.reason !== "waiting" && note(endingWord(event.reason), event.detail, event.coded),
        ];
      default:
        this.#step?.add(event);
        return [];
    }
  }

  /** Unfold all steps, those to come too, or fold them. */
  unfold(open) {
    this.#open = open;
    for (const step of this.element.querySelectorAll("details.step:not(.setup)")) step.open = open;
  }
}
