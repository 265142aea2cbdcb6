// Hands text to the reader as a file, and writes a conversation down as one.

import { h } from "./elements.js";
import { t } from "./i18n.js";
import { path, promptText } from "./tree.js";

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A title as a file name: no separators, nothing that a file system refuses. */
export function fileName(title, ending) {
  const name = title.replace(/[\\/:*?"<>|\p{Cc}]+/gu, " ").trim().slice(0, 60) || "qafila";
  return `${name}.${ending}`;
}

/** The branch that is shown, as Markdown. */
export function asMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system.trim() !== "") parts.push(`> ${conversation.system.trim().replaceAll("\n", "\n> ")}`);
  for (const node of path(conversation)) {
    parts.push(`## ${node.role === "user" ? t("you") : node.model}`, promptText(node));
  }
  return `${parts.join("\n\n")}\n`;
}
