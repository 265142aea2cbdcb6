// Why a step did what it did: what else the model could have done, and what each part of its context did to it.

import { attempt } from "./attempt.js";
import { explainEvent } from "./agent_api.js";
import { h } from "./elements.js";
import { number, percent, t } from "./i18n.js";
import { longText } from "./long_text.js";

const nameOf = (candidate) =>
  candidate === "" ? t("inWords") : h("bdi", { class: "call-name", dir: "ltr" }, candidate);

function filled(share) {
  const bar = h("span", { class: "bar" });
  bar.style.inlineSize = `${Math.max(1, share * 100)}%`;
  return bar;
}

/** The candidates of a decision, likeliest first, as bars; null where the model chose freely. */
export function oddsView(decision, chosen) {
  if (decision.candidates.length === 0) return null;
  const rows = decision.candidates.map(({ name, probability }) =>
    h(
      "li",
      { class: name === chosen ? "odds-row chosen" : "odds-row" },
      h(
        "span",
        { class: "odds-name" },
        nameOf(name),
        name === chosen && h("span", { class: "offscreen" }, ` ${t("chosen")}`),
      ),
      h("span", { class: "track", "aria-hidden": "true" }, filled(probability)),
      h("span", { class: "share" }, percent(probability)),
    ),
  );
  return h("section", { class: "odds" }, h("h3", {}, t("decision")), h("ul", {}, rows));
}

const ROLES = { instructions: /* t */ "partInstructions", goal: /* t */ "partGoal", you: /* t */ "partYou" };

function partName(what) {
  if (what in ROLES) return t(ROLES[what]);
  const tool = /^(.*) said$/s.exec(what);
  return tool ? t("partTool", { name: tool[1] }) : what;
}

function instead(candidate) {
  if (candidate === null || candidate === undefined) return null;
  const values = { name: candidate.name, share: percent(candidate.probability) };
  return h(
    "p",
    { class: "instead", dir: "auto" },
    candidate.name === "" ? t("insteadWords", values) : t("insteadTool", values),
  );
}

function causeRow({ what, text, change, instead: other }, most) {
  const bar = h("span", { class: `effect-bar ${change < 0 ? "against" : "for"}` });
  bar.style.inlineSize = `${(50 * Math.abs(change)) / most}%`;
  const sign = change < 0 ? "−" : "+";
  return h(
    "li",
    { class: "cause" },
    h("span", { class: "cause-part" }, partName(what)),
    h("span", { class: "effect-track", "aria-hidden": "true" }, bar),
    h("span", { class: "share" }, h("bdi", { dir: "ltr" }, `${sign}${number(Math.abs(change), 2)}`)),
    longText(text),
    instead(other),
  );
}

/** A button that explains the answer at an event, when asked: it takes the model as long as reading it many times. */
export function explanation(run, event) {
  const slot = h("div");
  const place = h("div", { class: "explanation", "aria-live": "polite" });
  const button = h("button", { type: "button", class: "button small" }, t("explain"));
  const draw = ({ causes }) => {
    const sorted = [...causes].sort((one, other) => Math.abs(other.change) - Math.abs(one.change));
    const most = Math.max(1e-6, ...sorted.map(({ change }) => Math.abs(change)));
    place.replaceChildren(
      h("h3", {}, t("explanation")),
      h("p", { class: "note" }, t("explanationNote")),
      h(
        "ul",
        {},
        sorted.map((cause) => causeRow(cause, most)),
      ),
    );
  };
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = t("explaining");
    await attempt(slot, () => explainEvent(run, event), draw);
    button.textContent = t("explain");
    button.disabled = false;
  });
  return { button, place: h("div", {}, slot, place) };
}
