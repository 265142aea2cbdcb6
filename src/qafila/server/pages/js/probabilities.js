// An answer as its tokens, coloured by how sure the model was; a card shows what else it might have said.

import { byId, h } from "./elements.js";
import { number, percent, t } from "./i18n.js";

// From sure to surprising. The classes carry the colours; the card carries the numbers, so colour is never the only sign.
const STEPS = [0.9, 0.6, 0.3, 0.1];
const stepOf = (probability) => STEPS.findIndex((least) => probability >= least) + 1 || STEPS.length + 1;

const lines = (text) => text.replaceAll("\n", "⏎");
const visible = (text) => lines(text).replaceAll("\t", "⇥").replaceAll(" ", "\u2423") || "∅";

/**
 * Tokens that together make whole letters: [{text, tokens}]. A letter outside ASCII may be cut into several tokens, which
 * the API shows as U+FFFD and gives the bytes of.
 */
export function letterGroups(tokens) {
  const groups = [];
  let waiting = [];
  let bytes = [];
  const close = () => {
    if (waiting.length > 0) groups.push({ text: new TextDecoder().decode(new Uint8Array(bytes)), tokens: waiting });
    waiting = [];
    bytes = [];
  };
  for (const token of tokens) {
    if (!token.b) {
      close();
      groups.push({ text: token.t, tokens: [token] });
      continue;
    }
    waiting.push(token);
    bytes.push(...token.b);
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
      close();
    } catch {
      // The letter goes on in the next token.
    }
  }
  close();
  return groups;
}

export class TokensView {
  #root;
  #shown = 0;
  #paragraph = null;

  constructor(root) {
    this.#root = root;
    root.classList.add("tokens");
    root.addEventListener("pointerover", (event) => this.#point(event.target));
    root.addEventListener("pointerleave", hideCard);
    root.addEventListener("focusin", (event) => this.#point(event.target));
    root.addEventListener("focusout", hideCard);
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Show the tokens that have come since. */
  write(tokens) {
    // The last group may be half a letter, so it is drawn only once another token follows or `finish` is called.
    this.#append(letterGroups(tokens.slice(this.#shown)).slice(0, -1));
  }

  finish(tokens) {
    this.#append(letterGroups(tokens.slice(this.#shown)));
  }

  #append(groups) {
    for (const group of groups) {
      if (this.#paragraph === null) {
        this.#paragraph = h("p", { dir: "auto" });
        this.#root.append(this.#paragraph);
      }
      const probability = Math.exp(group.tokens.reduce((sum, token) => sum + token.p, 0));
      // One stop for the Tab key; arrows go from token to token.
      const first = this.#shown === 0 && this.#root.querySelector(".token") === null;
      const span = h("span", { class: `token p${stepOf(probability)}`, tabindex: first ? "0" : "-1" }, lines(group.text));
      span.group = group;
      this.#paragraph.append(span);
      this.#shown += group.tokens.length;
      if (!group.text.includes("\n")) continue;
      this.#paragraph.classList.toggle("tight", !group.text.includes("\n\n"));
      this.#paragraph = null;
    }
  }

  #point(target) {
    if (target.group) showCard(target, target.group);
    else hideCard();
  }

  #move(event) {
    const back = document.dir === "rtl" ? "ArrowRight" : "ArrowLeft";
    const on = document.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
    if (event.key !== back && event.key !== on) return;
    const all = [...this.#root.querySelectorAll(".token")];
    const at = all.indexOf(event.target);
    const next = all[at + (event.key === on ? 1 : -1)];
    if (at < 0 || !next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

function row(text, logprob, chosen) {
  const probability = Math.exp(logprob);
  const bar = h("span", { class: "bar" });
  bar.style.inlineSize = `${Math.max(1, probability * 100)}%`;
  return h(
    "div",
    { class: chosen ? "row chosen" : "row" },
    h("bdi", { class: "word" }, visible(text)),
    h("span", { class: "track", "aria-hidden": "true" }, bar),
    h("span", { class: "share" }, percent(probability)),
  );
}

function rowsOf(token) {
  const rows = token.top.map(([text, logprob]) => row(text, logprob, text === token.t));
  // Sampling may choose what is not among the likeliest.
  if (!token.top.some(([text]) => text === token.t)) rows.push(row(token.t, token.p, true));
  return rows;
}

function showCard(span, { tokens }) {
  const card = byId("token-card");
  const title = h("div", { class: "card-title" }, t("tokenChances"));
  const parts = tokens.map((token) => h("div", { class: "card-token" }, rowsOf(token)));
  card.replaceChildren(title, ...parts, h("div", { class: "card-note" }, t("tokenLogprob", { n: number(tokens[0].p, 3) })));
  if (!card.matches(":popover-open")) card.showPopover();
  span.setAttribute("aria-describedby", "token-card");
  const at = span.getBoundingClientRect();
  const size = card.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
  const above = at.top - size.height - 8;
  card.style.left = `${left}px`;
  card.style.top = `${above >= 8 ? above : at.bottom + 8}px`;
}

export function hideCard() {
  const card = byId("token-card");
  if (card.matches(":popover-open")) card.hidePopover();
}
