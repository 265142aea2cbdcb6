// Where the reader writes: the text, attached files, and the button that sends or stops.

import { attach } from "./attachments.js";
import { announce } from "./dialogs.js";
import { byId } from "./elements.js";
import { t } from "./i18n.js";
import { submitsText } from "./keyboard.js";
import { chip } from "./user_message.js";

export class Composer {
  #form = byId("composer");
  #text = byId("prompt");
  #files = byId("files");
  #button = byId("send");
  #attachments = [];
  #running = false;

  /** @param actions {send(text, attachments), stop(), editLast()} */
  constructor(actions) {
    this.actions = actions;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) actions.stop();
      else this.#send();
    });
    this.#text.addEventListener("input", () => this.#fit());
    this.#text.addEventListener("keydown", (event) => {
      if (submitsText(event)) {
        event.preventDefault();
        if (!this.#running) this.#send();
      } else if (event.key === "ArrowUp" && this.#text.value === "" && actions.editLast()) {
        event.preventDefault();
      }
    });
    byId("attach").addEventListener("click", () => byId("file-input").click());
    byId("file-input").addEventListener("change", async ({ target }) => {
      await this.#add([...target.files]);
      target.value = "";
    });
    this.#text.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      this.#add([...event.clipboardData.files]);
    });
    this.#acceptDrops();
    this.update();
  }

  #acceptDrops() {
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      this.#form.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) this.#form.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      this.#form.classList.remove("dropping");
      if (!carriesFiles(event)) return;
      event.preventDefault();
      this.#add([...event.dataTransfer.files]);
    });
  }

  async #add(files) {
    await attach(this.#attachments, files, announce);
    this.update();
    this.focus();
  }

  #send() {
    const text = this.#text.value.trim();
    if (text === "" && this.#attachments.length === 0) return;
    const attachments = this.#attachments;
    this.#attachments = [];
    this.#text.value = "";
    this.update();
    this.actions.send(text, attachments);
  }

  /** Put an example or a draft in, ready to be sent. */
  fill(text) {
    this.#text.value = text;
    this.update();
    this.focus();
  }

  focus() {
    this.#text.focus();
  }

  setRunning(running) {
    this.#running = running;
    this.update();
  }

  #fit() {
    this.#text.style.blockSize = "auto";
    this.#text.style.blockSize = `${Math.min(this.#text.scrollHeight, innerHeight * 0.4)}px`;
    this.#button.disabled = !this.#running && this.#text.value.trim() === "" && this.#attachments.length === 0;
  }

  update() {
    const chips = this.#attachments.map((file) =>
      chip(file, () => {
        this.#attachments = this.#attachments.filter((other) => other !== file);
        this.update();
        this.focus();
      }),
    );
    this.#files.replaceChildren(...chips);
    this.#files.hidden = chips.length === 0;
    const label = t(this.#running ? /* t */ "stop" : /* t */ "send");
    this.#button.setAttribute("aria-label", label);
    this.#button.title = label;
    this.#button.classList.toggle("stop", this.#running);
    this.#fit();
  }
}
