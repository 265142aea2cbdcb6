// The two answers to calls that wait for a person's word.

import { decide } from "./agent_api.js";
import { attempt } from "./attempt.js";
import { say } from "./dialogs.js";
import { h, icon } from "./elements.js";
import { t, tn } from "./i18n.js";

/**
 * @param calls their ids, in the run of id `run`. @param decided called with the run once the server has taken the answer.
 * @param words {deny, allow, reason()}: what stands on the buttons, and why it is so.
 * @returns {buttons, slot}: the slot is where it is said that the answer could not be given.
 */
export function approvalAnswer(run, calls, decided, { deny, allow, reason = () => "" }) {
  const slot = h("div");
  const answer = async (allowed) => {
    for (const button of buttons) button.disabled = true;
    const well = await attempt(
      slot,
      () => decide(run, calls, allowed, reason()),
      (now) => {
        say(allowed ? /* t */ "approvalAllowed" : /* t */ "approvalDenied", {}, true);
        decided(now);
      },
    );
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
  const buttons = [button("danger deny", "close", deny, false), button("allow", "check", allow, true)];
  return { buttons, slot };
}

/**
 * One answer for all of a run's calls that wait together; null where there is one call. It stands below their cards, so
 * that they are read first.
 */
export function answerToAll(run, calls, decided) {
  if (calls.length < 2) return null;
  const { buttons, slot } = approvalAnswer(run, calls, decided, { deny: t("denyAll"), allow: t("allowAll") });
  return h(
    "section",
    { class: "approval-all", "aria-label": tn("callsTogether", calls.length) },
    h("p", {}, tn("callsTogether", calls.length)),
    slot,
    h("div", { class: "approval-answer" }, buttons),
  );
}
