// The one way by which HTML gets into the page. What a model writes is hostile: Markdown is rendered with raw HTML switched
// off, and what comes out is held to these lists all the same.

import "../vendor/dompurify/purify.min.js";

const { DOMPurify } = globalThis;

const TAGS =
  "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s a table thead tbody tr th td div span sup sub".split(" ");
const ATTRIBUTES = ["href", "title", "class", "dir", "start"];
const LINKS = /^(?:https?:\/\/|mailto:)/i;

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("rel", "noopener noreferrer nofollow");
    node.setAttribute("target", "_blank");
  }
});

/** Rendered Markdown as a fragment with nothing in it but text, structure and links to the web. */
export function sanitise(html) {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOWED_URI_REGEXP: LINKS,
    // The pattern above is applied to every attribute that is not named as harmless.
    ADD_URI_SAFE_ATTR: ["dir", "start"],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

/**
 * MathML as KaTeX writes it. Inline styles are cut before anything parses them, since the Content-Security-Policy reports
 * them; so is the annotation that repeats the source. KaTeX escapes quotes and brackets in text, so that neither pattern
 * can match inside a formula's own words.
 */
export function sanitiseMaths(html) {
  const bare = html
    .replace(/ style="[^"]*"/g, "")
    .replace(/<annotation[^>]*>[^<]*<\/annotation>/g, "")
    .replace(/<\/?semantics>/g, "");
  return DOMPurify.sanitize(bare, {
    USE_PROFILES: { mathMl: true },
    ADD_TAGS: ["span"],
    FORBID_ATTR: ["href", "xlink:href", "style"],
    RETURN_DOM_FRAGMENT: true,
  });
}
