// One run: how it stands, its steps or its time, calls that wait for a word, and what can be done with it.

import { forkRun, getRun, resumeRun, sayToRun, stopRun, undoRun } from "./agent_api.js";
import { answerToAll } from "./approval_answer.js";
import { approvalCard } from "./approval_card.js";
import { attempt, showFailure } from "./attempt.js";
import { announce, confirmed, say } from "./dialogs.js";
import { diffView } from "./diff_view.js";
import { h, icon } from "./elements.js";
import { dateTime, number, t, tn } from "./i18n.js";
import { RunFeed } from "./run_feed.js";
import { RunFlow } from "./run_flow.js";
import { SayBox } from "./say_box.js";
import { figureLine, stateMark, tokenWords } from "./run_words.js";
import { timeline } from "./run_timeline.js";

const NEAR_END_PX = 80;

export class RunView {
  #run = null;
  #recorded = [];
  #overTime = false;
  #unfolded = false;

  /** @param agent {changed(), openRun(id)} */
  constructor(id, agent) {
    this.id = id;
    this.agent = agent;
    this.head = h("header", { class: "run-head" });
    this.slot = h("div");
    this.undone = h("div", { class: "undone" });
    this.steps = h("div");
    this.pending = h("div", { class: "pending" });
    this.box = new SayBox({
      say: (text) => this.#do(() => (this.#run.state === "running" ? sayToRun(id, text) : resumeRun(id, text))),
    });
    this.scroller = h(
      "div",
      { class: "scroller" },
      h("div", { class: "agent-page" }, this.head, this.slot, this.steps, this.pending, this.undone),
    );
    this.element = h("div", { class: "agent-frame" }, this.scroller, this.box.element);
    this.feed = new RunFeed(id, {
      onEvent: (recorded) => this.#add(recorded),
      onEnd: () => this.#ended(),
      onLost: (lost) => this.element.classList.toggle("lost", lost),
      onError: (error) => showFailure(this.slot, error, () => this.open()),
    });
    this.#reset();
  }

  async open() {
    await attempt(
      this.slot,
      () => getRun(this.id),
      (run) => {
        this.#show(run);
        this.feed.start();
      },
    );
  }

  close() {
    this.feed.stop();
  }

  focus() {
    this.box.focus();
  }

  /** Draw anew what there is: the language has changed. */
  redraw() {
    this.#reset();
    this.box.draw();
    for (const recorded of this.#recorded) this.flow.add(recorded);
    this.flow.unfold(this.#unfolded);
    this.#drawSteps();
    this.pending.replaceChildren();
    this.undone.replaceChildren();
    if (this.#run !== null) this.#show(this.#run);
  }

  /** Ask how the run stands: a word may have been given elsewhere. */
  async refresh() {
    if (this.#run === null) return;
    const now = await getRun(this.id).catch(() => this.#run);
    const older = now.events < this.#run.events;
    const same = now.events === this.#run.events && now.state === this.#run.state;
    // That it has ended is told by its events.
    const ending = this.#run.state === "running" && now.state !== "running";
    if (older || same || ending) return;
    this.#show(now);
    this.feed.start();
  }

  #reset() {
    this.flow = new RunFlow(this.id, { fork: (event) => this.#fork(event) });
    this.steps.replaceChildren(this.flow.element);
  }

  #add(recorded) {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.#recorded.push(recorded);
    this.flow.add(recorded);
    if (this.#overTime) this.#drawSteps();
    if (atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  async #ended() {
    await attempt(
      this.slot,
      () => getRun(this.id),
      (run) => {
        const was = this.#run.state;
        this.#show(run);
        if (run.state === "running") setTimeout(() => this.feed.start(), 500);
        else if (was === "running") say(run.state === "waiting" ? /* t */ "runWaits" : /* t */ "runEnded", {}, true);
        this.agent.changed();
      },
    );
  }

  /** What the server says after something was asked of the run. */
  #went(run) {
    this.#show(run);
    this.feed.start();
    this.agent.changed();
  }

  #do(action) {
    return attempt(this.slot, action, (run) => this.#went(run));
  }

  #show(run) {
    const writing = this.box.element.contains(document.activeElement);
    this.#run = run;
    this.#drawHead();
    this.#drawPending();
    this.box.setState(run.state);
    // The box goes away with the focus in it: the call that waits is read next, and its buttons are not pressed by it.
    if (writing && run.state === "waiting") this.pending.querySelector("h2")?.focus();
  }

  #drawPending() {
    const { pending, state } = this.#run;
    const wanted = state === "waiting" ? pending : [];
    // A card that is being looked at, or written in, is not drawn again.
    const same =
      wanted.map(({ call }) => call).join() ===
      [...this.pending.querySelectorAll(".approval")].map(({ dataset }) => dataset.call).join();
    if (same && wanted.length > 0) return;
    const decided = (run) => {
      this.#went(run);
      (this.pending.querySelector("h2") ?? this.head.querySelector("h1")).focus();
    };
    const all = answerToAll(
      this.id,
      wanted.map(({ call }) => call),
      decided,
    );
    const cards = wanted.map((approval) => approvalCard(approval, this.id, decided));
    this.pending.replaceChildren(...cards, ...(all ? [all] : []));
  }

  #drawHead() {
    const run = this.#run;
    const figures = [run.model, tn("steps", run.steps), ...tokenWords(run.usage), dateTime(run.created * 1000)];
    if (run.cost > 0) figures.splice(-1, 0, t("costOf", { n: number(run.cost, 4) }));
    const held = document.activeElement?.dataset?.tool;
    this.head.replaceChildren(
      h(
        "div",
        { class: "run-line" },
        stateMark(run.state),
        h("h1", { dir: "auto", tabindex: "-1", data: { tool: "goal" } }, run.goal),
      ),
      run.state === "stopped" && run.reason === null ? h("p", { class: "run-note" }, t("endedInterrupted")) : "",
      figureLine(figures.map((text) => h("bdi", {}, text))),
      h("div", { class: "run-tools" }, this.#buttons()),
    );
    if (held) this.head.querySelector(`[data-tool="${held}"]`)?.focus();
  }

  #buttons() {
    const { state } = this.#run;
    const changed =
      state !== "running" && this.#recorded.some(({ event }) => event.kind === "intended" && event.edits.length > 0);
    const button = (tool, name, label, click, props = {}) =>
      h(
        "button",
        { type: "button", class: "button small", data: { tool }, on: { click }, ...props },
        icon(name, "flip"),
        label,
      );
    const switchTo = (overTime) => {
      this.#overTime = overTime;
      this.#drawHead();
      this.#drawSteps();
    };
    const fold = () => {
      this.#unfolded = !this.#unfolded;
      this.flow.unfold(this.#unfolded);
      this.#drawHead();
    };
    return [
      state === "running" && button("stop", "stop", t("stopRun"), () => this.#do(() => stopRun(this.id))),
      (state === "stopped" || state === "failed") &&
        button("resume", "redo", t("resumeRun"), () => this.#do(() => resumeRun(this.id, ""))),
      button("time", "chances", t("timeline"), () => switchTo(!this.#overTime), {
        "aria-pressed": String(this.#overTime),
      }),
      !this.#overTime && button("fold", "fold", t(this.#unfolded ? /* t */ "foldAll" : /* t */ "unfoldAll"), fold),
      changed && button("undo", "undo", t("undoLast"), () => this.#undo(false)),
      changed && button("undo-all", "undo", t("undoAll"), () => this.#undo(true)),
    ].filter(Boolean);
  }

  #drawSteps() {
    this.steps.replaceChildren(this.#overTime ? timeline(this.#recorded) : this.flow.element);
  }

  async #undo(all) {
    const text = t(all ? /* t */ "undoAllText" : /* t */ "undoLastText");
    if (!(await confirmed(t("undoTitle"), text, t("undo")))) return;
    await attempt(
      this.slot,
      () => undoRun(this.id, all),
      ({ edits }) => {
        const title = edits.length === 0 ? t("nothingToUndo") : tn("undoneEdits", edits.length);
        this.undone.replaceChildren(h("h2", {}, title), ...edits.map(diffView));
        announce(title);
        this.refresh();
      },
    );
  }

  async #fork(event) {
    await attempt(
      this.slot,
      () => forkRun(this.id, event),
      (run) => {
        say("forked", {}, true);
        this.agent.openRun(run.id);
      },
    );
  }
}
