// All calls that wait for the reader's word, whichever run they belong to.

import { listApprovals } from "./agent_api.js";
import { approvalCard } from "./approval_card.js";
import { attempt } from "./attempt.js";
import { h } from "./elements.js";
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
    const kept = new Map(approvals.map((one) => [keyOf(one), this.#cards.get(keyOf(one)) ?? this.#card(one)]));
    for (const [key, card] of this.#cards) if (!kept.has(key)) card.remove();
    this.#cards = kept;
    this.list.querySelector(":scope > .none")?.remove();
    for (const card of kept.values()) if (card.parentElement === null) this.list.append(card);
    if (kept.size === 0) this.list.append(h("p", { class: "none" }, t("noApprovals")));
  }

  #card(approval) {
    const run = h("a", { href: `#/agent/runs/${encodeURIComponent(approval.run)}`, dir: "auto" }, approval.goal);
    const head = h("p", { class: "approval-run" }, run, h("time", {}, dateTime(approval.at * 1000)));
    const decided = () => {
      this.#cards.get(keyOf(approval))?.remove();
      this.#cards.delete(keyOf(approval));
      (this.list.querySelector("h2") ?? this.title).focus();
      this.agent.changed();
    };
    return approvalCard(approval, approval.run, decided, head);
  }
}
