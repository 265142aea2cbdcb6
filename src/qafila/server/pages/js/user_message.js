// A message of the reader's: its text as written, attached files as chips, and the editor that makes a new branch of it.

import { branchSwitch } from "./branch_switch.js";
import { copyText } from "./clipboard.js";
import { say } from "./dialogs.js";
import { h, icon, iconButton } from "./elements.js";
import { bytes, t } from "./i18n.js";
import { submitsText } from "./keyboard.js";

/** One attached file. */
export function chip({ name, size }, onRemove = null) {
  return h(
    "span",
    { class: "chip" },
    icon("file"),
    h("bdi", { class: "chip-name" }, name),
    h("span", { class: "chip-size" }, bytes(size)),
    onRemove && iconButton("close", t("removeFile", { name }), onRemove),
  );
}

export class UserMessage {
  /** @param actions {edit(node, text), branch(node, step)} */
  constructor(chat, node, actions) {
    this.chat = chat;
    this.node = node;
    this.actions = actions;
    this.element = h("article", { class: "message user", "aria-label": t("you"), data: { node: node.id } });
    this.update();
  }

  update() {
    const { node } = this;
    const copy = async () => {
      await copyText(node.content);
      say("copied", {}, true);
    };
    const files = (node.attachments ?? []).map((file) => chip(file));
    const paragraphs = node.content.split(/\n{2,}/).filter((text) => text !== "");
    const bubble = h(
      "div",
      { class: "bubble" },
      files.length > 0 && h("div", { class: "chips" }, files),
      paragraphs.map((text) => h("p", { dir: "auto" }, text)),
    );
    const tools = h(
      "div",
      { class: "message-tools" },
      branchSwitch(this.chat, node, this.actions.branch),
      iconButton("copy", t("copy"), copy),
      iconButton("edit", t("edit"), () => this.edit(), { class: "edit" }),
    );
    this.element.replaceChildren(bubble, tools);
  }

  edit() {
    const { node } = this;
    const area = h("textarea", { dir: "auto", rows: "1", "aria-label": t("editMessage"), value: node.content });
    const cancel = () => {
      this.update();
      this.element.querySelector(".edit").focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text === "" && !node.attachments?.length) return;
      this.actions.edit(node, text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (submitsText(event)) {
        event.preventDefault();
        send();
      }
    });
    const editor = h(
      "div",
      { class: "editor" },
      area,
      h(
        "div",
        { class: "editor-buttons" },
        h("button", { type: "button", class: "button", on: { click: cancel } }, t("cancel")),
        h("button", { type: "button", class: "button primary", on: { click: send } }, t("send")),
      ),
    );
    this.element.replaceChildren(editor);
    const fit = () => {
      area.style.blockSize = "auto";
      area.style.blockSize = `${Math.min(area.scrollHeight + 2, innerHeight / 2)}px`;
    };
    area.addEventListener("input", fit);
    fit();
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
