// Keys that work everywhere on the page. A list of them is shown by showShortcuts.

const coarse = matchMedia("(pointer: coarse)");

/** Whether a key press in a text field sends. On touch keyboards Enter is the only way to start a new line. */
export function submitsText(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return false;
  return event.ctrlKey || event.metaKey || !coarse.matches;
}

const typing = (target) => target.closest("input, textarea, select, [contenteditable]") !== null;

/** @param actions {newChat, search, settings, shortcuts, sidebar, stop, compose} */
export function installShortcuts(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    const command = event.ctrlKey || event.metaKey;
    let action = null;
    // Codes, not keys: with an Arabic keyboard the same places carry other letters.
    if (command && event.shiftKey && event.code === "KeyO") action = actions.newChat;
    else if (command && !event.shiftKey && event.code === "KeyK") action = actions.search;
    else if (command && event.code === "Comma") action = actions.settings;
    else if (command && event.code === "Slash") action = actions.shortcuts;
    else if (command && !event.shiftKey && event.code === "KeyB") action = actions.sidebar;
    else if (event.key === "Escape" && !document.querySelector("dialog[open], :popover-open")) action = actions.stop;
    else if (event.key === "/" && !command && !typing(event.target)) action = actions.compose;
    if (action === null) return;
    if (event.key !== "Escape") event.preventDefault();
    action();
  });
}
