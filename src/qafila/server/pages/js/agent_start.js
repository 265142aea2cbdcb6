// Where a run begins: the goal, which tools it may use, and how many steps it may take.

import { beginRun } from "./agent_api.js";
import { attempt } from "./attempt.js";
import { h, icon } from "./elements.js";
import { number, t } from "./i18n.js";
import { submitsText } from "./keyboard.js";
import { effectMark } from "./run_words.js";
import { settings } from "./settings.js";

const MOST_STEPS = 1000;

export class AgentStart {
  #barred = new Set();

  /** @param agent {about, openRun(id)}. @param chat whose model is used, where the agent may have it. */
  constructor(agent, chat) {
    this.agent = agent;
    this.chat = chat;
    this.goal = h("textarea", { rows: "3", dir: "auto", autocomplete: "off", id: "goal" });
    this.steps = h("input", {
      type: "number",
      inputmode: "numeric",
      min: "1",
      max: String(MOST_STEPS),
      step: "1",
      id: "goal-steps",
    });
    this.element = h("div", { class: "scroller" });
    this.goal.addEventListener("keydown", (event) => {
      if (!submitsText(event)) return;
      event.preventDefault();
      this.#begin();
    });
    this.redraw();
  }

  focus() {
    this.goal.focus();
  }

  redraw() {
    this.slot = h("div");
    this.goal.placeholder = t("goalPlaceholder");
    this.goal.setAttribute("aria-label", t("goal"));
    this.steps.placeholder = t("automatic");
    this.button = h("button", { type: "submit", class: "button primary" }, icon("send"), t("begin"));
    const submit = (event) => {
      event.preventDefault();
      this.#begin();
    };
    this.count = h("span");
    const form = h(
      "form",
      { class: "goal-form", on: { submit } },
      this.goal,
      h(
        "details",
        { class: "step tool-choice" },
        h("summary", {}, h("span", { class: "step-what" }, this.count)),
        this.#tools(),
      ),
      h(
        "div",
        { class: "goal-row" },
        h("label", { for: "goal-steps" }, t("budgetSteps")),
        this.steps,
        h("span", { class: "spacer" }),
        this.button,
      ),
    );
    const page = h(
      "div",
      { class: "agent-page" },
      h("h1", { tabindex: "-1" }, t("agentTitle")),
      h("p", { class: "note" }, t("agentNote")),
      form,
      this.slot,
    );
    this.element.replaceChildren(page);
    this.#drawCount();
  }

  #tools() {
    const rows = this.agent.about.tools.map(({ name, description, effect, origin }) => {
      const box = h("input", { type: "checkbox", checked: !this.#barred.has(name) });
      box.addEventListener("change", () => {
        if (box.checked) this.#barred.delete(name);
        else this.#barred.add(name);
        this.#drawCount();
      });
      const head = h(
        "span",
        { class: "tool-head" },
        h("bdi", { class: "call-name", dir: "ltr" }, name),
        effectMark(effect),
        origin !== "built-in" && h("bdi", { class: "origin" }, origin),
      );
      return h(
        "li",
        {},
        h("label", {}, box, h("span", {}, head, h("span", { class: "tool-words" }, h("bdi", {}, description)))),
      );
    });
    return h("fieldset", { class: "step-body" }, h("legend", { class: "offscreen" }, t("tools")), h("ul", {}, rows));
  }

  #drawCount() {
    const all = this.agent.about.tools.length;
    this.count.textContent = t("toolsChosen", { n: number(all - this.#barred.size), all: number(all) });
  }

  #body(goal) {
    const { about } = this.agent;
    const { temperature, maxTokens, seed } = settings().sampling;
    const body = { goal };
    if (about.models.includes(this.chat.model)) body.model = this.chat.model;
    if (this.#barred.size > 0)
      body.tools = about.tools.map(({ name }) => name).filter((name) => !this.#barred.has(name));
    const steps = Math.round(Number(this.steps.value));
    if (steps >= 1) body.budget = { steps: Math.min(MOST_STEPS, steps) };
    if (temperature !== null) body.temperature = temperature;
    if (maxTokens !== null) body.max_tokens = maxTokens;
    if (seed !== null) body.seed = seed;
    return body;
  }

  async #begin() {
    const goal = this.goal.value.trim();
    if (goal === "" || this.button.disabled) return;
    this.button.disabled = true;
    await attempt(
      this.slot,
      () => beginRun(this.#body(goal)),
      (run) => {
        this.goal.value = "";
        this.agent.openRun(run.id);
      },
    );
    this.button.disabled = false;
  }
}
