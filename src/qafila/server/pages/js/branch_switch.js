// "2 / 3" with arrows, where a message has several versions.

import { h, iconButton } from "./elements.js";
import { number, t } from "./i18n.js";
import { siblings } from "./tree.js";

/** The switch, or null for a message of one version. */
export function branchSwitch(chat, node, branch) {
  const versions = siblings(chat.conversation, node);
  if (versions.length < 2) return null;
  const at = versions.indexOf(node);
  const arrow = (name, label, step) =>
    iconButton(name, label, () => branch(node, step), { flip: true, disabled: !versions[at + step] });
  return h(
    "div",
    { class: "branches", role: "group", "aria-label": t("versions") },
    arrow("previous", t("previousVersion"), -1),
    h("span", { class: "branch-number", dir: "ltr" }, `${number(at + 1)} / ${number(versions.length)}`),
    arrow("next", t("nextVersion"), 1),
  );
}
