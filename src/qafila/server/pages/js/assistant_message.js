// An answer: its text as it grows (or its tokens and their probabilities), what it took, and what can be done with it.

import { branchSwitch } from "./branch_switch.js";
import { copyText } from "./clipboard.js";
import { say } from "./dialogs.js";
import { h, icon, iconButton } from "./elements.js";
import { number, t, tn } from "./i18n.js";
import { MarkdownStream } from "./markdown_stream.js";
import { endingNotice, errorNotice } from "./notices.js";
import { TokensView } from "./probabilities.js";
import { settings } from "./settings.js";
import { loadTokens } from "./store.js";

// Figures that change with every token cannot be read.
const FIGURES_EVERY_MS = 300;

/** Tokens, speed and time to the first token, as a list of words. */
function figures(stats) {
  const parts = [tn("tokens", stats.tokens)];
  if (stats.speed !== null) parts.push(t("tokensPerSecond", { n: number(stats.speed, stats.speed < 10 ? 1 : 0) }));
  if (stats.firstMs !== null) parts.push(t("toFirstToken", { n: number(stats.firstMs / 1000, 2) }));
  return parts.map((part) => h("span", {}, part));
}

export class AssistantMessage {
  #markdown = null;
  #tokens = null;
  #figuresAt = 0;

  /**
   * @param actions {regenerate, retry, compare, rate, branch, choose}: what the buttons do.
   * @param onDraw called when the message's height may have changed.
   */
  constructor(chat, node, actions, onDraw) {
    this.chat = chat;
    this.node = node;
    this.actions = actions;
    this.onDraw = onDraw;
    this.body = h("div", { class: "answer" });
    this.foot = h("div", { class: "foot" });
    this.name = h("bdi");
    this.element = h(
      "article",
      { class: "message assistant", data: { node: node.id } },
      h("header", { class: "answer-name" }, icon("llama", "mark"), this.name),
      this.body,
      this.foot,
    );
    this.showText();
    this.update();
  }

  /** Draw the text from the beginning, as prose or as tokens: after the switch between them was turned. */
  async showText() {
    const generation = this.chat.generationOf(this.node);
    this.#markdown = null;
    this.#tokens = null;
    if (settings().probabilities) {
      const tokens = generation?.tokens ?? (await loadTokens(this.node.id).catch(() => null));
      if (tokens !== null && tokens.length + (generation ? 1 : 0) > 0) {
        const root = h("div", { class: "prose" });
        this.#tokens = new TokensView(root);
        if (generation) this.#tokens.write(tokens);
        else this.#tokens.finish(tokens);
        this.body.replaceChildren(root);
      }
    }
    if (this.#tokens === null) {
      const prose = this.#prose();
      if (this.node.content !== "") prose.finish(this.node.content);
    }
    this.onDraw();
  }

  /** The text as Markdown, also where tokens were asked for and the server gives no probabilities. */
  #prose() {
    if (this.#markdown === null) {
      this.#tokens = null;
      this.#markdown = new MarkdownStream(h("div", { class: "prose" }), this.onDraw);
      this.body.replaceChildren(this.#markdown.root);
    }
    return this.#markdown;
  }

  /** More text has come. */
  write(generation) {
    this.element.classList.remove("waiting");
    if (this.#tokens && generation.tokens.length > 0) {
      this.#tokens.write(generation.tokens);
      this.onDraw();
    } else {
      this.#prose().write(this.node.content);
    }
    const now = performance.now();
    if (now - this.#figuresAt < FIGURES_EVERY_MS) return;
    this.#figuresAt = now;
    this.element.querySelector(".figures")?.replaceChildren(...figures(generation.stats()));
  }

  /** The answer has ended. */
  finish(generation) {
    this.#markdown?.finish(this.node.content);
    this.#tokens?.finish(generation.tokens);
    this.update();
    this.onDraw();
  }

  /** Draw what stands above and below the text. */
  update() {
    const { node, actions, chat } = this;
    this.name.textContent = node.model ?? "";
    this.element.setAttribute("aria-label", t("answerOf", { name: node.model ?? "" }));
    const generation = chat.generationOf(node);
    const running = generation !== null;
    this.element.classList.toggle("waiting", running && node.content === "");
    this.element.classList.toggle("running", running);
    this.element.setAttribute("aria-busy", String(running));
    const stats = running ? generation.stats() : node.stats;
    const line = h("div", { class: "figures", title: this.#details() });
    if (stats && stats.tokens > 0) line.append(...figures(stats));
    const comparing = chat.comparison && [chat.comparison.left, chat.comparison.right].includes(node);
    const parts = [node.error && !running && errorNotice(node.error, () => actions.retry(node)), endingNotice(node, running)];
    if (comparing) parts.push(this.#choice(running));
    parts.push(h("div", { class: "message-tools" }, !running && !comparing && this.#buttons(), line));
    this.foot.replaceChildren(...parts.filter(Boolean));
  }

  #details() {
    const { node } = this;
    if (!node.stats) return "";
    const parts = [t("seedWas", { n: node.seed })];
    if (node.stats.prompt !== null) parts.push(tn("promptTokens", node.stats.prompt));
    if (node.stats.cached) parts.push(tn("cachedTokens", node.stats.cached));
    return parts.join("\n");
  }

  #choice(running) {
    const other = Object.values(this.chat.comparison).some((one) => one.id && this.chat.generationOf(one) !== null);
    const choose = () => this.actions.choose(this.node);
    return h(
      "button",
      { type: "button", class: "button primary choose", disabled: running || other || this.node.content === "", on: { click: choose } },
      icon("check"),
      t("chooseThis"),
    );
  }

  #buttons() {
    const { node, actions, chat } = this;
    const copy = async () => {
      await copyText(node.content);
      say("copied", {}, true);
    };
    const rate = (rating, name, label) =>
      iconButton(name, label, () => actions.rate(node, rating), {
        class: `rate ${rating}`,
        "aria-pressed": String(node.rating === rating),
      });
    const done = node.content !== "";
    return [
      branchSwitch(chat, node, actions.branch),
      done && iconButton("copy", t("copy"), copy),
      node.error === null && iconButton("redo", t("regenerate"), () => actions.regenerate(node), { class: "regenerate" }),
      done && rate("up", "up", t("goodAnswer")),
      done && rate("down", "down", t("badAnswer")),
      done && iconButton("compare", t("compare"), () => actions.compare(node), { class: "compare" }),
    ].filter(Boolean);
  }
}
