// A call that waits for a person's word: what it will change, why it asks, and the two answers.
// Nothing here is a form and nothing takes the focus by itself: Enter allows only where it is pressed on "Allow".

import { attempt } from "./attempt.js";
import { decide } from "./agent_api.js";
import { say } from "./dialogs.js";
import { diffView } from "./diff_view.js";
import { h, icon } from "./elements.js";
import { t } from "./i18n.js";
import { reasonWords } from "./reason_words.js";
import { argumentList, effectMark } from "./run_words.js";

/**
 * @param approval {call, name, arguments, effect, why, coded, edits}. @param run the run's id.
 * @param decided called with the run once the server has taken the answer. @param head what stands above, if anything.
 */
export function approvalCard(approval, run, decided, head = null) {
  const slot = h("div");
  const reason = h("input", {
    type: "text",
    class: "reason",
    dir: "auto",
    maxlength: "500",
    "aria-label": t("reasonLabel"),
    placeholder: t("reasonLabel"),
  });
  const answer = async (allowed) => {
    for (const button of buttons) button.disabled = true;
    const said = () => decide(run, approval.call, allowed, reason.value.trim());
    const well = await attempt(slot, said, (now) => {
      say(allowed ? /* t */ "approvalAllowed" : /* t */ "approvalDenied", {}, true);
      decided(now);
    });
    if (!well) for (const button of buttons) button.disabled = false;
  };
  // The second half of a double click may fall on the next call's button.
  const button = (kind, name, label, allowed) =>
    h(
      "button",
      { type: "button", class: `button ${kind}`, on: { click: ({ detail }) => detail < 2 && answer(allowed) } },
      icon(name),
      label,
    );
  const buttons = [button("danger deny", "close", t("deny"), false), button("allow", "check", t("allow"), true)];
  const edits = approval.edits ?? [];
  return h(
    "article",
    { class: "approval", "aria-label": t("approvalOf", { name: approval.name }), data: { call: approval.call } },
    head,
    h(
      "h2",
      { tabindex: "-1" },
      h("span", {}, t("wantsTo")),
      h("bdi", { class: "call-name", dir: "ltr" }, approval.name),
      effectMark(approval.effect),
    ),
    h("p", { class: "why" }, `${t("whyAsked")} `, reasonWords(approval.why, approval.coded)),
    edits.map(diffView),
    argumentList(approval.arguments, edits),
    slot,
    h("div", { class: "approval-answer" }, reason, buttons),
  );
}
