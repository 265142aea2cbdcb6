// Markdown to a safe fragment of DOM, block by block.

import markdownit from "../vendor/markdown-it/markdown-it.esm.min.mjs";
import { decorateCode } from "./code.js";
import { h } from "./elements.js";
import { firstStrong, hasLetters, t } from "./i18n.js";
import { mathsPlugin, renderMaths } from "./maths.js";
import { sanitise, sanitiseMaths } from "./sanitise.js";

const md = markdownit({ html: false, linkify: true, breaks: true });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
// Only addresses on the web: no javascript:, data: or file:, and nothing relative, which would be this server's own.
md.validateLink = (url) => /^(?:https?:\/\/|mailto:)/i.test(url.trim());
md.use(mathsPlugin);

// A picture's address is shown, never fetched: fetching it would tell its owner that, and when, the answer was read.
md.renderer.rules.image = (tokens, i) => {
  const { escapeHtml } = md.utils;
  const source = tokens[i].attrGet("src") ?? "";
  const label = escapeHtml(tokens[i].content || source);
  return md.validateLink(source) ? `<a class="picture" href="${escapeHtml(source)}">${label}</a>` : label;
};

md.renderer.rules.fence = (tokens, i) => {
  const { escapeHtml } = md.utils;
  const language = /^[\w+#.-]*/.exec(tokens[i].info.trim())[0].toLowerCase();
  const content = tokens[i].content;
  return `<pre dir="ltr"><code class="language-${escapeHtml(language)}">${escapeHtml(content)}</code></pre>`;
};
md.renderer.rules.code_block = (tokens, i) =>
  `<pre dir="ltr"><code class="language-">${md.utils.escapeHtml(tokens[i].content)}</code></pre>`;
md.renderer.rules.code_inline = (tokens, i) => `<code dir="ltr">${md.utils.escapeHtml(tokens[i].content)}</code>`;

const DIRECTED = new Set(["paragraph_open", "heading_open", "list_item_open", "th_open", "td_open"]);

// Each paragraph, heading, item and cell goes its own way; columns are aligned by classes, for inline styles are forbidden.
md.core.ruler.push("direction", (state) => {
  for (const token of state.tokens) {
    if (DIRECTED.has(token.type)) token.attrSet("dir", "auto");
    const style = token.attrGet("style");
    if (style !== null) {
      token.attrs = token.attrs.filter(([name]) => name !== "style");
      token.attrJoin("class", `align-${style.split(":")[1]}`);
    }
  }
});

/**
 * The top-level blocks of a text: [{html, start}], where `start` is the offset of the block's first line.
 * A fenced block also has `fence: {info, content}`.
 */
export function blocksOf(text) {
  const env = {};
  const tokens = md.parse(text, env);
  const offsets = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) offsets.push(at + 1);
  const blocks = [];
  for (let first = 0, i = 0; i < tokens.length; i += 1) {
    if (tokens[i].level !== 0 || tokens[i].nesting === 1) continue;
    const token = tokens[first];
    const html = md.renderer.render(tokens.slice(first, i + 1), md.options, env);
    const fence = token.type === "fence" ? { info: token.info, content: token.content } : null;
    blocks.push({ html, fence, start: offsets[token.map[0]] });
    first = i + 1;
  }
  return blocks;
}

/** One block's HTML as DOM: sanitised, with directions, formulas, and frames around code and tables. */
export function blockNodes(html) {
  const fragment = sanitise(html);
  // dir="auto" looks past children that have a dir of their own, and these have little else.
  for (const element of fragment.querySelectorAll("ul, ol, blockquote, table")) element.dir = firstStrong(element.textContent);
  for (const item of fragment.querySelectorAll("li")) {
    if (!hasLetters(item.textContent)) item.dir = item.parentElement.dir; // "1985" goes the way of its list
    else if (item.firstElementChild?.tagName === "P") item.dir = firstStrong(item.textContent);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "table-frame", role: "region", tabindex: "0", "aria-label": t("table") });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const picture of fragment.querySelectorAll("a.picture")) picture.prepend(`${t("picture")} `);
  renderMaths(fragment, sanitiseMaths);
  decorateCode(fragment);
  if (fragment.firstChild === null) fragment.append(""); // a block always has a place, even an empty one
  return [...fragment.childNodes];
}
