// The interface's two languages: strings, plurals, numbers, and the page's direction.

import ar from "./strings_ar.js";
import en from "./strings_en.js";

const STRINGS = { en, ar };
// Latin digits in both: numbers here stand beside code, model names and settings, where digits are Latin too.
const LOCALES = { en: "en", ar: "ar-u-nu-latn" };

let language = document.documentElement.lang in STRINGS ? document.documentElement.lang : "en";

export const currentLanguage = () => language;
export const isRtl = () => language === "ar";

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));

/** The string of this name in the interface's language, with {placeholders} filled in. */
export function t(key, values = {}) {
  const text = STRINGS[language][key];
  if (text === undefined) throw new Error(`no string ${key}`);
  return fill(text, values);
}

/** The same for a counted thing: the string is a table of plural forms (Arabic has six). */
export function tn(key, count, values = {}) {
  const forms = STRINGS[language][key];
  const form = forms[new Intl.PluralRules(LOCALES[language]).select(count)] ?? forms.other;
  return fill(form, { n: number(count), ...values });
}

export const list = (key) => STRINGS[language][key];

export function number(value, digits = 0) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(LOCALES[language], options).format(value);
}

export const percent = (value, digits = 1) =>
  new Intl.NumberFormat(LOCALES[language], { style: "percent", maximumFractionDigits: digits }).format(value);

export const bytes = (size) =>
  size < 1000 ? t("sizeBytes", { n: number(size) }) : t("sizeKilobytes", { n: number(size / 1000, size < 10000 ? 1 : 0) });

export const dateTime = (time) =>
  new Intl.DateTimeFormat(LOCALES[language], { dateStyle: "medium", timeStyle: "short" }).format(time);

const TARGETS = [
  ["[data-t]", "t", (element, text) => (element.textContent = text)],
  ["[data-t-label]", "tLabel", (element, text) => element.setAttribute("aria-label", text)],
  ["[data-t-title]", "tTitle", (element, text) => (element.title = text)],
  ["[data-t-placeholder]", "tPlaceholder", (element, text) => (element.placeholder = text)],
];

/** Fill in the strings of the static parts below an element. */
export function translate(root = document) {
  for (const [selector, key, write] of TARGETS) {
    for (const element of root.querySelectorAll(selector)) write(element, t(element.dataset[key]));
  }
}

/** Change the interface's language; parts that are drawn by scripts listen to "languagechanged" on the document. */
export function setLanguage(next) {
  language = next in STRINGS ? next : "en";
  document.documentElement.lang = language;
  document.documentElement.dir = isRtl() ? "rtl" : "ltr";
  translate();
  document.dispatchEvent(new Event("languagechanged"));
}

const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const STRONG = /\p{L}/u;

export const hasLetters = (text) => STRONG.test(text);

/** "rtl" or "ltr" by the first letter, as dir="auto" decides, for elements in which dir="auto" looks past its children. */
export function firstStrong(text) {
  const letter = STRONG.exec(text);
  return letter !== null && RTL.test(letter[0]) ? "rtl" : "ltr";
}
