// All calls that wait for the reader's word, whichever run they belong to.

import { listApprovals } from "./agent_api.js";
import { answerToAll } from "./approval_answer.js";
import { approvalCard } from "./approval_card.js";
import { attempt } from "./attempt.js";
import { h, place } from "./elements.js";
import { dateTime, t } from "./i18n.js";

const keyOf = ({ run, call }) => `${run} ${call}`;

export class ApprovalsView {
  #cards = new Map();

  /** @param agent {changed()} */
  constructor(agent) {
    this.agent = agent;
    this.slot = h("div");
    this.title = h("h1", { tabindex: "-1" });
    this.list = h("div", { class: "pending" });
    this.element = h("div", { class: "scroller" }, h("div", { class: "agent-page" }, this.title, this.slot, this.list));
    this.redraw();
  }

  open() {
    return attempt(this.slot, listApprovals, (approvals) => this.draw(approvals));
  }

  focus() {
    this.title.focus();
  }

  redraw() {
    this.title.textContent = t("approvals");
    this.#cards.clear();
    this.list.replaceChildren();
  }

  /** Show these; a card that is there already keeps its place, with the focus and what was written in it. */
  draw(approvals) {
    const wanted = [];
    for (const run of new Set(approvals.map((one) => one.run))) {
      const together = approvals.filter((one) => one.run === run);
      const calls = together.map(({ call }) => call);
      const keys = together.map(keyOf);
      for (const one of together) wanted.push([keyOf(one), () => this.#card(one)]);
      if (calls.length > 1) {
        const key = `${run} ${calls.join(" ")}`;
        wanted.push([key, () => answerToAll(run, calls, () => this.#decided([key, ...keys]))]);
      }
    }
    const kept = new Map(wanted.map(([key, make]) => [key, this.#cards.get(key) ?? make()]));
    this.#cards = kept;
    place(this.list, kept.size > 0 ? [...kept.values()] : [h("p", { class: "none" }, t("noApprovals"))]);
  }

  #decided(keys) {
    for (const key of keys) {
      this.#cards.get(key)?.remove();
      this.#cards.delete(key);
    }
    (this.list.querySelector("h2") ?? this.title).focus();
    this.agent.changed();
  }

  #card(approval) {
    const run = h("a", { href: `#/agent/runs/${encodeURIComponent(approval.run)}`, dir: "auto" }, approval.goal);
    const head = h("p", { class: "approval-run" }, run, h("time", {}, dateTime(approval.at * 1000)));
    return approvalCard(approval, approval.run, () => this.#decided([keyOf(approval)]), head);
  }
}
