// Which models the server offers, and a bar that says so while it does not answer.

import { listModels } from "./api.js";
import { askKey } from "./dialogs.js";
import { byId, h } from "./elements.js";
import { t } from "./i18n.js";
import { change, preferredModel } from "./settings.js";

const SOON_MS = 2000;
const LATE_MS = 15_000;

export class Models {
  #select = byId("model");
  #bar = byId("offline");
  #names = [];
  #wait = SOON_MS;

  /** @param answered called when the server has said which models it has. */
  constructor(chat, answered) {
    this.chat = chat;
    this.answered = answered;
    this.#select.addEventListener("change", () => {
      chat.model = this.#select.value;
      change({ model: chat.model });
    });
  }

  /** Ask the server until it answers; a key is asked for when it wants one. */
  async load(refused = false) {
    try {
      this.#names = await listModels();
    } catch (error) {
      if (error.kind === "key") {
        if (await askKey(refused)) await this.load(true);
        return;
      }
      this.#bar.hidden = false;
      setTimeout(() => this.load(), this.#wait);
      this.#wait = Math.min(LATE_MS, this.#wait * 1.5);
      return;
    }
    this.#wait = SOON_MS;
    this.#bar.hidden = true;
    this.draw();
    this.answered();
  }

  draw() {
    const options = this.#names.map((name) => h("option", { value: name, dir: "ltr" }, name));
    if (options.length === 0) options.push(h("option", { value: "" }, t("noModels")));
    this.#select.replaceChildren(...options);
    this.chat.model = preferredModel(this.#names);
    this.#select.value = this.chat.model ?? "";
  }
}
