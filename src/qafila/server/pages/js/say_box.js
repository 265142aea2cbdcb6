// The box below a run: a word while it goes on, or what it should do next once it has ended.

import { h, icon } from "./elements.js";
import { t } from "./i18n.js";
import { submitsText } from "./keyboard.js";

export class SayBox {
  #state = "running";

  /** @param actions {say(text)}: resolves with whether the server has taken it. */
  constructor({ say }) {
    this.text = h("textarea", { rows: "1", dir: "auto", autocomplete: "off" });
    this.button = h("button", { type: "submit", class: "send" }, icon("send"));
    const form = h("form", { class: "composer" }, h("div", { class: "say-row" }, this.text, this.button));
    this.element = h("div", { class: "dock" }, form);
    const send = async () => {
      const text = this.text.value.trim();
      if (text === "" || this.button.disabled) return;
      this.button.disabled = true;
      if (await say(text)) this.text.value = "";
      this.#fit();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    this.text.addEventListener("input", () => this.#fit());
    this.text.addEventListener("keydown", (event) => {
      if (!submitsText(event)) return;
      event.preventDefault();
      send();
    });
    this.draw();
  }

  focus() {
    this.text.focus();
  }

  setState(state) {
    this.#state = state;
    this.draw();
  }

  draw() {
    const label = this.#state === "running" ? t("sayWhileRunning") : t("sayNext");
    this.text.placeholder = label;
    this.text.setAttribute("aria-label", label);
    this.button.setAttribute("aria-label", t("send"));
    this.button.title = t("send");
    // While a call waits, its card is where the word goes.
    this.element.hidden = this.#state === "waiting";
    this.#fit();
  }

  #fit() {
    this.text.style.blockSize = "auto";
    this.text.style.blockSize = `${Math.min(this.text.scrollHeight, innerHeight * 0.3)}px`;
    this.button.disabled = this.text.value.trim() === "";
  }
}
