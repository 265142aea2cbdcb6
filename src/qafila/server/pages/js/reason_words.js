// Reasons: the server's own in the reader's language, what people, tools and policy files say as it is.

import { h } from "./elements.js";
import { list, number } from "./i18n.js";
import { effectWord } from "./run_words.js";

// Names may be written in the other direction than the sentence that they stand in.
const name = (text) => h("bdi", {}, text);

function valueWords(key, value) {
  if (Array.isArray(value)) return value.flatMap((one, i) => (i === 0 ? [name(one)] : ["، ", name(one)]));
  if (key === "effect") return [effectWord(value)];
  if (typeof value !== "number") return [name(value)];
  return [name(Number.isInteger(value) ? number(value) : String(value))];
}

/** A reason of the server's own in the reader's language; null where it has none there. @param coded {code, values}. */
export function ownReason(coded) {
  const reasons = list("reasons");
  if (!coded || !Object.hasOwn(reasons, coded.code)) return null;
  const parts = reasons[coded.code].split(/\{(\w+)\}/);
  return h(
    "span",
    { class: "reason-words" },
    parts.flatMap((part, i) => (i % 2 === 0 ? [part] : valueWords(part, coded.values[part]))),
  );
}

/** @param words the reason as the server says it. @param coded {code, values}, where it is its own. */
export const reasonWords = (words, coded) => ownReason(coded) ?? h("bdi", {}, words);
