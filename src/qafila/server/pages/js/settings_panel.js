// The panel with the system prompt, sampling, appearance and ratings.

import { say } from "./dialogs.js";
import { download } from "./download.js";
import { byId } from "./elements.js";
import { currentLanguage, number, setLanguage, t, tn } from "./i18n.js";
import { allRatings } from "./ratings.js";
import { applyTheme, AUTOMATIC, change, settings } from "./settings.js";

// input id, setting, digits shown; a slider and a number each, the number empty where the model's own default applies.
const SLIDERS = [
  { id: "temperature", key: "temperature", digits: 2, resting: 0.7 },
  { id: "top-p", key: "topP", digits: 2, resting: 0.95 },
];
const NUMBERS = [
  { id: "max-tokens", key: "maxTokens", least: 1, most: 1_000_000 },
  { id: "seed", key: "seed", least: 0, most: 2 ** 31 - 1 },
];

const sample = (part) => change({ sampling: { ...settings().sampling, ...part } });

export class SettingsPanel {
  #panel = byId("settings");

  constructor(chat) {
    this.chat = chat;
    for (const { id, key } of SLIDERS) {
      byId(id).addEventListener("input", ({ target }) => this.#sampled({ [key]: Number(target.value) }));
    }
    for (const { id, key, least, most } of NUMBERS) {
      byId(id).addEventListener("change", ({ target }) => {
        const value = Math.round(Number(target.value));
        const empty = target.value.trim() === "" || !Number.isFinite(value);
        this.#sampled({ [key]: empty ? null : Math.min(most, Math.max(least, value)) });
      });
    }
    byId("reset").addEventListener("click", () => {
      change({ sampling: AUTOMATIC });
      this.draw();
      say("resetDone", {}, true);
    });
    byId("system").addEventListener("change", ({ target }) => chat.setSystem(target.value));
    byId("language").addEventListener("change", ({ target }) => {
      change({ language: target.value });
      setLanguage(target.value);
    });
    byId("theme").addEventListener("change", ({ target }) => {
      change({ theme: target.value === "system" ? null : target.value });
      applyTheme();
    });
    byId("export-ratings").addEventListener("click", async () => {
      const { count, text } = await allRatings();
      if (count > 0) download("qafila-preferences.jsonl", "application/jsonl", text);
      say(count > 0 ? /* t */ "ratingsExported" : /* t */ "noRatings", {}, true);
    });
    byId("settings-close").addEventListener("click", () => this.close());
    chat.addEventListener("path", () => this.#drawSystem());
    this.#panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
    });
    this.draw();
  }

  #sampled(part) {
    sample(part);
    this.draw();
  }

  #drawSystem() {
    if (document.activeElement !== byId("system")) byId("system").value = this.chat.conversation.system;
  }

  draw() {
    const { sampling, theme } = settings();
    for (const { id, key, digits, resting } of SLIDERS) {
      const value = sampling[key];
      byId(id).value = value ?? resting;
      byId(id).classList.toggle("automatic", value === null);
      const shown = value === null ? t("automatic") : number(value, digits);
      byId(`${id}-value`).textContent = shown;
      byId(id).setAttribute("aria-valuetext", shown);
    }
    for (const { id, key } of NUMBERS) byId(id).value = sampling[key] ?? "";
    byId("language").value = currentLanguage();
    byId("theme").value = theme ?? "system";
    this.#drawSystem();
  }

  isOpen() {
    return !this.#panel.hidden;
  }

  async open() {
    this.#panel.hidden = false;
    byId("settings-open").setAttribute("aria-expanded", "true");
    byId("settings-close").focus();
    const { count } = await allRatings().catch(() => ({ count: 0 }));
    byId("ratings-count").textContent = count === 0 ? "" : tn("ratings", count);
  }

  close() {
    this.#panel.hidden = true;
    byId("settings-open").setAttribute("aria-expanded", "false");
    byId("settings-open").focus();
  }
}
