// The list of messages, and the scrolling: it follows a growing answer only while the reader is at the end.

import { AssistantMessage } from "./assistant_message.js";
import { byId, h, place } from "./elements.js";
import { t } from "./i18n.js";
import { settings } from "./settings.js";
import { path } from "./tree.js";
import { UserMessage } from "./user_message.js";

const NEAR_END_PX = 48;

export class MessagesView {
  #views = new Map(); // node id -> view
  #scroller = byId("scroller");
  #list = byId("messages");
  #following = true;
  #frame = 0;

  constructor(chat, actions) {
    this.chat = chat;
    this.actions = actions;
    let before = 0;
    this.#scroller.addEventListener(
      "scroll",
      () => {
        const { scrollTop } = this.#scroller;
        // Growing content moves nothing, so going up is always the reader's own doing.
        if (this.#nearEnd()) this.#following = true;
        else if (scrollTop < before) this.#following = false;
        before = scrollTop;
        this.#showJump();
      },
      { passive: true },
    );
    byId("jump").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.#follow()).observe(this.#scroller);
    chat.addEventListener("path", () => this.draw());
    chat.addEventListener("text", ({ detail }) => this.#views.get(detail.node.id)?.write(detail));
    chat.addEventListener("end", ({ detail }) => this.#views.get(detail.node.id)?.finish(detail));
    chat.addEventListener("node", ({ detail }) => this.#views.get(detail.id)?.update());
  }

  /** Draw anew what depends on language or on the switch of the probabilities. */
  reset() {
    this.#views.clear();
    this.draw();
  }

  /** Show the active branch; messages that were shown before keep their elements, and with them focus and selection. */
  draw() {
    const nodes = path(this.chat.conversation);
    const kept = new Map();
    const view = (node) => {
      const one = this.#views.get(node.id) ?? this.#make(node);
      if (one.node === node) kept.set(node.id, one);
      else kept.set(node.id, this.#make(node)); // loaded anew from the store
      return kept.get(node.id);
    };
    const elements = nodes.map((node) => {
      const { comparison } = this.chat;
      if (comparison && node.parent === comparison.parent) return this.#pair(view(comparison.left), view(comparison.right));
      return view(node).element;
    });
    this.#views = kept;
    for (const one of kept.values()) if (!one.element.querySelector(".editor")) one.update();
    place(this.#list, elements);
    document.body.classList.toggle("empty", nodes.length === 0);
    this.#follow();
  }

  #make(node) {
    if (node.role === "user") return new UserMessage(this.chat, node, this.actions);
    return new AssistantMessage(this.chat, node, this.actions, () => this.#follow());
  }

  #pair(left, right) {
    const cancel = h("button", { type: "button", class: "button", on: { click: this.actions.cancelComparison } }, t("keepFirst"));
    const head = h("div", { class: "pair-head" }, h("h2", {}, t("whichIsBetter")), cancel);
    return h(
      "section",
      { class: "pair", "aria-label": t("whichIsBetter") },
      head,
      h("div", { class: "pair-answers" }, left.element, right.element),
    );
  }

  /** Probabilities on or off: the texts are drawn anew, the rest stays. */
  redrawTexts() {
    for (const view of this.#views.values()) view.showText?.();
    document.body.classList.toggle("showing-probabilities", settings().probabilities);
  }

  #nearEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  #showJump() {
    byId("jump").hidden = this.#nearEnd();
  }

  toEnd() {
    this.#following = true;
    this.#follow();
  }

  #follow() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#following) this.#scroller.scrollTop = this.#scroller.scrollHeight;
      this.#showJump();
    });
  }
}
