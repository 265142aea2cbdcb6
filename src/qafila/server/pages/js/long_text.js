// Text that a tool or a model wrote: each line goes its own way, and of a long one a part is shown at first.

import { h } from "./elements.js";
import { number, t } from "./i18n.js";
import { seen } from "./unseen.js";

const CHARACTERS_SHOWN = 2000;
const LINES_SHOWN = 20;

/** @param text what is shown at first. @param whole all of it, where `text` is itself a part. */
export function longText(text, whole = null) {
  const full = whole ?? text;
  let short = text.slice(0, CHARACTERS_SHOWN);
  const cut = short.split("\n");
  if (cut.length > LINES_SHOWN) short = cut.slice(0, LINES_SHOWN).join("\n");
  const block = h("pre", { class: "long-text", dir: "auto", tabindex: "0" }, seen(short));
  if (short === full) return block;
  const more = h("button", { type: "button", class: "text-button" }, t("showWhole", { n: number(full.length) }));
  more.addEventListener("click", () => {
    block.textContent = seen(full);
    block.focus();
    more.remove();
  });
  return h("div", {}, block, more);
}
