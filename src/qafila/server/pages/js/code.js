// Code blocks: a frame with the language and a copy button, and colours once the highlighter has come.

import { copyText } from "./clipboard.js";
import { h, icon } from "./elements.js";
import { t } from "./i18n.js";
import { sanitise } from "./sanitise.js";

// Longer code stays plain: nobody reads colours there, and marking it up again and again would make the stream stutter.
const MOST_LETTERS = 40_000;

let highlighter = null;
let loading = null;

function load() {
  loading ??= import("../vendor/highlight.js/highlight.min.js").then((module) => (highlighter = module.default));
  return loading;
}

const languageOf = (code) => /language-(\S+)/.exec(code.className)?.[1] ?? "";

function paint(code) {
  const text = code.textContent;
  const language = languageOf(code);
  if (!highlighter.getLanguage(language) || text.length > MOST_LETTERS) return;
  code.replaceChildren(sanitise(highlighter.highlight(text, { language, ignoreIllegals: true }).value));
}

function highlight(code) {
  if (languageOf(code) === "") return;
  if (highlighter) paint(code);
  else load().then(() => paint(code));
}

/** New text in a block that is there already, so that its frame, buttons and scroll position stay. */
export function rewriteCode(frame, text) {
  const code = frame.querySelector("code");
  code.textContent = text;
  highlight(code);
}

/** Put every code block below `root` into its frame. */
export function decorateCode(root) {
  for (const block of root.querySelectorAll("pre")) {
    const code = block.querySelector("code");
    const label = h("span", {}, t("copy"));
    const copy = async () => {
      await copyText(code.textContent);
      label.textContent = t("copied");
      setTimeout(() => (label.textContent = t("copy")), 1600);
    };
    const button = h("button", { type: "button", class: "code-copy", on: { click: copy } }, icon("copy"), label);
    const head = h("div", { class: "code-head" }, h("span", { class: "code-language" }, languageOf(code)), button);
    const frame = h("div", { class: "code-frame", dir: "ltr" });
    block.replaceWith(frame);
    block.tabIndex = 0; // wide code scrolls, and must do so by keyboard too
    frame.append(head, block);
    highlight(code);
  }
}
