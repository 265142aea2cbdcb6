// Modal questions and the one line that is spoken and shown when something has happened.

import { keepKey } from "./api.js";
import { byId, h } from "./elements.js";
import { list, t } from "./i18n.js";

for (const button of document.querySelectorAll("dialog .dismiss")) {
  button.addEventListener("click", () => button.closest("dialog").close(""));
}

/** Show a <dialog> and resolve with its return value ("" when it was dismissed). */
function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Ask before something that cannot be taken back. */
export async function confirmed(title, text, action) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-action").textContent = action;
  return (await ask(byId("confirm"))) === "yes";
}

/** Ask for an API key and keep it. False: the reader would not. */
export async function askKey(refused) {
  const input = byId("key-input");
  input.value = "";
  byId("key-refused").hidden = !refused;
  const answer = await ask(byId("key"));
  if (answer !== "yes" || input.value.trim() === "") return false;
  keepKey(input.value.trim(), byId("key-remember").checked);
  input.value = "";
  return true;
}

export function showShortcuts() {
  const rows = list("shortcutList").map(([keys, meaning]) =>
    h("div", { class: "shortcut" }, h("dt", {}, ...keys.split("+").map((key) => h("kbd", {}, key))), h("dd", {}, meaning)),
  );
  byId("shortcuts-list").replaceChildren(...rows);
  return ask(byId("shortcuts"));
}

let hiding = 0;

/** Say what has happened: spoken politely by screen readers; `shown` puts it on the screen for a moment as well. */
export function say(key, values = {}, shown = false) {
  announce(t(key, values), shown);
}

export function announce(text, shown = true) {
  byId("status").textContent = text;
  if (!shown) return;
  const toast = byId("toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (toast.hidden = true), 4000);
}
