// What the reader prefers, kept in this browser. Sampling values are null where the model's own defaults apply.

const KEY = "qafila.settings";

export const AUTOMATIC = Object.freeze({ temperature: null, topP: null, maxTokens: null, seed: null });

const DEFAULTS = {
  language: null, // null: the browser's
  theme: null, // null: the system's
  model: null, // null: the first one that the server lists
  system: "",
  sampling: AUTOMATIC,
  probabilities: false,
  sidebar: true,
};

function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) || "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

let values = load();
const listeners = new Set();

export const settings = () => values;

/** Change some settings, keep them, and tell who listens. */
export function change(part) {
  values = { ...values, ...part };
  try {
    localStorage.setItem(KEY, JSON.stringify(values));
  } catch {
    // Without storage the change lasts as long as the page.
  }
  for (const listener of listeners) listener(values, part);
}

export const onChange = (listener) => listeners.add(listener);

/** Of the models that a server offers, the one that was chosen last, else the first; null where there is none. */
export const preferredModel = (names) => (names.includes(values.model) ? values.model : (names[0] ?? null));

/** Show the page in the chosen theme; without a choice the stylesheet follows the system. */
export function applyTheme() {
  if (values.theme === null) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = values.theme;
}

export const isDark = () =>
  values.theme === null ? matchMedia("(prefers-color-scheme: dark)").matches : values.theme === "dark";
