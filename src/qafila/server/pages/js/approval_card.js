// A call that waits for a person's word: what it will change, why it asks, and the two answers.
// Nothing here is a form and nothing takes the focus by itself: Enter allows only where it is pressed on "Allow".

import { approvalAnswer } from "./approval_answer.js";
import { diffView } from "./diff_view.js";
import { h } from "./elements.js";
import { t } from "./i18n.js";
import { reasonWords } from "./reason_words.js";
import { argumentList, effectMark, sourceList } from "./run_words.js";

/**
 * @param approval {call, name, arguments, effect, why, coded, edits}. @param run the run's id.
 * @param decided called with the run once the server has taken the answer. @param head what stands above, if anything.
 */
export function approvalCard(approval, run, decided, head = null) {
  const reason = h("input", {
    type: "text",
    class: "reason",
    dir: "auto",
    maxlength: "500",
    "aria-label": t("reasonLabel"),
    placeholder: t("reasonLabel"),
  });
  const { slot, buttons } = approvalAnswer(run, [approval.call], decided, {
    deny: t("deny"),
    allow: t("allow"),
    reason: () => reason.value.trim(),
  });
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
    sourceList(approval.sources ?? []),
    edits.map(diffView),
    argumentList(approval.arguments, edits),
    slot,
    h("div", { class: "approval-answer" }, reason, buttons),
  );
}
