// A small menu below a button: light dismiss and the top layer come from the popover attribute, arrow keys from here.

import { h, icon } from "./elements.js";

/** Open a menu beside `anchor`. Items are {icon, label, run, danger}. */
export function openMenu(anchor, items) {
  const menu = h("div", { class: "menu", role: "menu", popover: "auto" });
  for (const item of items) {
    const run = () => {
      menu.hidePopover();
      item.run();
    };
    const classes = item.danger ? "menu-item danger" : "menu-item";
    menu.append(h("button", { type: "button", role: "menuitem", class: classes, on: { click: run } }, icon(item.icon), item.label));
  }
  menu.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...menu.children];
    all.at((all.indexOf(document.activeElement) + step) % all.length).focus();
  });
  menu.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    anchor.setAttribute("aria-expanded", "false");
    if (menu.contains(document.activeElement)) anchor.focus();
    menu.remove();
  });
  document.body.append(menu);
  menu.showPopover();
  anchor.setAttribute("aria-expanded", "true");
  const at = anchor.getBoundingClientRect();
  const size = menu.getBoundingClientRect();
  const start = document.dir === "rtl" ? at.left : at.right - size.width;
  menu.style.left = `${Math.min(Math.max(8, start), innerWidth - size.width - 8)}px`;
  const below = at.bottom + 4;
  menu.style.top = `${below + size.height < innerHeight ? below : at.top - size.height - 4}px`;
  menu.firstElementChild.focus();
}
