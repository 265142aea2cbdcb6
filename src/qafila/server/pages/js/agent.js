// The agent beside the chat: which of its pages is shown, the list of runs, and how many calls wait for a word.

import { describe, listApprovals, listRuns } from "./agent_api.js";
import { AgentStart } from "./agent_start.js";
import { ApprovalsView } from "./approvals_view.js";
import { attempt } from "./attempt.js";
import { byId, h, icon } from "./elements.js";
import { currentLanguage, dateTime, number, t, tn } from "./i18n.js";
import { MemoryView } from "./memory_view.js";
import { RunView } from "./run_view.js";
import { stateMark } from "./run_words.js";

const SHOWN_EVERY_MS = 4000;
const HIDDEN_EVERY_MS = 15_000;

/** The part of an address that names one of the agent's pages; null: it names none. */
export const agentPlace = (hash) => /^#\/agent(?:\/(.*))?$/.exec(hash)?.[1] ?? (hash === "#/agent" ? "" : null);

export class Agent {
  about = null;
  #asked = false;
  #place = null;
  #view = null;
  #runs = [];
  #more = false;
  #approvals = [];
  #timer = 0;
  #turn = 0;
  #drawn = "";

  /** @param leave called when the reader goes back to the chat. */
  constructor(chat, { leave }) {
    this.chat = chat;
    this.slot = h("div");
    byId("mode-chats").addEventListener("click", leave);
    byId("mode-agent").addEventListener("click", () => (location.hash = "#/agent"));
    document.addEventListener("visibilitychange", () => document.hidden || this.changed());
  }

  /** Ask whether the server has an agent; its part of the page is shown only then. */
  async load() {
    try {
      const about = await describe();
      this.about = about.enabled ? about : null;
    } catch {
      this.about = null; // the chat says what is wrong with the server
    }
    this.#asked = true;
    byId("modes").hidden = this.about === null;
    if (this.isShown()) this.show(this.#place);
    else this.changed();
  }

  isShown() {
    return this.#place !== null;
  }

  focus() {
    this.#view?.focus();
  }

  openRun(id) {
    location.hash = `#/agent/runs/${id}`;
  }

  /** Show one of the agent's pages: "" where runs begin, "approvals", "memory", or "runs/ID". */
  show(place) {
    const moved = this.#place !== place;
    this.#place = place;
    this.#frame(true);
    if (this.about === null) {
      if (this.#asked) byId("agent").replaceChildren(h("p", { class: "none" }, t("noAgent")));
      return;
    }
    this.#view?.close?.();
    this.#view = this.#make(place);
    byId("agent").replaceChildren(this.#view.element);
    this.#view.open?.();
    if (moved) this.#view.focus();
    this.drawSide();
    this.changed();
  }

  hide() {
    if (!this.isShown()) return;
    this.#view?.close?.();
    this.#view = null;
    this.#place = null;
    byId("agent").replaceChildren();
    this.#frame(false);
  }

  #frame(shown) {
    document.body.classList.toggle("with-agent", shown);
    byId("agent").hidden = !shown;
    byId("chat").hidden = shown;
    byId("agent-side").hidden = !shown;
    byId("chats-side").hidden = shown;
    byId("mode-chats").setAttribute("aria-current", String(!shown));
    byId("mode-agent").setAttribute("aria-current", String(shown));
    if (shown) document.title = `${t("agent")} · ${t("appName")}`;
  }

  #make(place) {
    const run = /^runs\/([\w-]+)$/.exec(place)?.[1];
    if (run !== undefined) return new RunView(run, this);
    if (place === "approvals") return new ApprovalsView(this);
    if (place === "memory") return new MemoryView();
    return new AgentStart(this, this.chat);
  }

  /** The language has changed. */
  redraw() {
    if (this.about === null) return;
    this.#drawBadge();
    if (!this.isShown()) return;
    document.title = `${t("agent")} · ${t("appName")}`;
    this.#view.redraw();
    if (this.#place === "approvals") this.#view.draw(this.#approvals);
    this.drawSide();
  }

  /** Something may have changed on the server: ask now, and again after a while. */
  async changed() {
    clearTimeout(this.#timer);
    if (this.about === null || document.hidden) return;
    // What was asked for before something was decided must not overwrite what came of it.
    this.#turn += 1;
    const turn = this.#turn;
    try {
      const approvals = await listApprovals();
      const list = this.isShown() ? await listRuns() : null;
      if (turn !== this.#turn) return;
      this.#approvals = approvals;
      if (this.#place === "approvals") this.#view.draw(this.#approvals);
      if (this.isShown() && list !== null) {
        const { data, has_more: more } = list;
        const older = this.#runs.slice(this.#runs.findIndex(({ id }) => id === data.at(-1)?.id) + 1);
        const extended = this.#runs.length > data.length && data.length > 0;
        this.#runs = extended ? [...data, ...older] : data;
        if (!extended) this.#more = more;
        this.drawSide();
        this.#view?.refresh?.();
      }
      this.#drawBadge();
    } catch {
      // The next time, perhaps; what the reader asks for says by itself what is wrong.
    }
    if (turn === this.#turn)
      this.#timer = setTimeout(() => this.changed(), this.isShown() ? SHOWN_EVERY_MS : HIDDEN_EVERY_MS);
  }

  #drawBadge() {
    const waiting = this.#approvals.length;
    const badge = byId("agent-badge");
    badge.hidden = waiting === 0;
    badge.replaceChildren(
      h("span", { "aria-hidden": "true" }, number(waiting)),
      h("span", { class: "offscreen" }, tn("approvalsWaiting", waiting)),
    );
  }

  drawSide() {
    // Drawn anew only where something has changed: a click must find what it was aimed at.
    const sign = JSON.stringify([this.#place, currentLanguage(), this.#approvals.length, this.#more, this.#runs]);
    if (sign === this.#drawn) return;
    this.#drawn = sign;
    const held = document.activeElement?.dataset?.place;
    const side = byId("agent-side");
    const scrolled = side.querySelector(".conversations")?.scrollTop ?? 0;
    const current = (place) => (place === this.#place ? "page" : null);
    const link = (place, name, label, extra = null) =>
      h(
        "a",
        {
          class: "side-link",
          href: place === "" ? "#/agent" : `#/agent/${place}`,
          "aria-current": current(place),
          data: { place },
        },
        icon(name),
        label,
        extra,
      );
    const waiting = this.#approvals.length;
    const badge = waiting > 0 && h("span", { class: "badge" }, number(waiting));
    const runs = this.#runs.map((run) => {
      const place = `runs/${run.id}`;
      const line = h(
        "span",
        { class: "run-row-line" },
        stateMark(run.state),
        h("span", { class: "excerpt" }, dateTime(run.created * 1000)),
      );
      const words = h("bdi", { class: "title" }, run.goal);
      return h(
        "li",
        {},
        h(
          "a",
          {
            class: "conversation",
            href: `#/agent/${place}`,
            title: run.goal,
            "aria-current": current(place),
            data: { place },
          },
          words,
          line,
        ),
      );
    });
    const more = h(
      "button",
      { type: "button", class: "text-button", on: { click: () => this.#older() } },
      t("olderRuns"),
    );
    side.replaceChildren(
      h(
        "div",
        { class: "side-links" },
        link("", "plus", t("newRun")),
        link("approvals", "inbox", t("approvals"), badge),
        link("memory", "memory", t("memory")),
      ),
      h(
        "div",
        { class: "conversations" },
        h("h2", { class: "age" }, t("runs")),
        this.slot,
        runs.length > 0 ? h("ul", {}, runs) : h("p", { class: "none" }, t("noRuns")),
        this.#more ? more : "",
      ),
    );
    side.querySelector(".conversations").scrollTop = scrolled;
    if (held !== undefined) side.querySelector(`[data-place="${CSS.escape(held)}"]`)?.focus();
  }

  #older() {
    return attempt(
      this.slot,
      () => listRuns(this.#runs.at(-1).id),
      ({ data, has_more: more }) => {
        this.#runs.push(...data);
        this.#more = more;
        this.drawSide();
      },
    );
  }
}
