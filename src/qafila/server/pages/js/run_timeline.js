// A run over time: a table whose rows carry a bar each, so that those who see no bars read the same figures.

import { h } from "./elements.js";
import { number, percent, t } from "./i18n.js";
import { spansOf, workAxis } from "./run_spans.js";
import { seconds } from "./run_words.js";

const LEGEND = [
  ["reading", /* t */ "legendReading"],
  ["writing", /* t */ "legendWriting"],
  ["tool", /* t */ "legendTool"],
  ["wait", /* t */ "legendWait"],
];

function bar(kind, from, to, total) {
  const piece = h("span", { class: `time-bar ${kind}` });
  piece.style.insetInlineStart = `${(100 * from) / total}%`;
  piece.style.inlineSize = `${(100 * (to - from)) / total}%`;
  return piece;
}

function bars(span, axis) {
  const from = axis.place(span.from);
  const to = axis.place(span.to);
  const total = Math.max(axis.total, 1e-6);
  if (span.kind !== "model") return [bar(span.kind, from, to, total)];
  const first = Math.min(to, from + span.spent.first_token_seconds);
  return [bar("reading", from, first, total), bar("writing", first, to, total)];
}

function what({ kind, name }) {
  if (kind === "model") return t("modelAnswers");
  return [kind === "wait" ? `${t("waitsFor")} ` : null, h("bdi", { class: "call-name", dir: "ltr" }, name)];
}

function row(span, axis) {
  const { spent } = span;
  const cell = (text) => h("td", { class: "count" }, text);
  const reuse =
    spent && spent.read > 0 ? [number(spent.cached), h("small", {}, ` ${percent(spent.cached / spent.read, 0)}`)] : "";
  return h(
    "tr",
    { class: span.kind },
    h("td", { class: "count" }, number(span.step)),
    h("th", { scope: "row" }, what(span)),
    h("td", { class: "time-track", "aria-hidden": "true" }, h("div", {}, bars(span, axis))),
    cell(seconds(span.to - span.from)),
    cell(spent ? number(spent.read) : ""),
    cell(reuse),
    cell(spent ? number(spent.generated) : ""),
  );
}

export function timeline(recorded) {
  const spans = spansOf(recorded);
  const axis = workAxis(spans);
  const head = (key, props = {}) => h("th", { scope: "col", ...props }, key);
  const columns = [
    head(t("step"), { class: "count" }),
    head(t("what")),
    head(seconds(axis.total), { class: "time-axis", "aria-hidden": "true" }),
    head(t("timeTaken"), { class: "count" }),
    head(t("columnRead"), { class: "count" }),
    head(t("columnReused"), { class: "count" }),
    head(t("columnWritten"), { class: "count" }),
  ];
  const legend = LEGEND.map(([kind, key]) =>
    h("li", {}, h("span", { class: `key ${kind}`, "aria-hidden": "true" }), t(key)),
  );
  return h(
    "section",
    { class: "timeline", "aria-label": t("timeline") },
    h("p", { class: "note" }, t("timelineNote")),
    h("ul", { class: "time-legend" }, legend),
    h(
      "div",
      { class: "time-frame", role: "region", tabindex: "0", "aria-label": t("timeline") },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, columns)),
        h(
          "tbody",
          {},
          spans.map((span) => row(span, axis)),
        ),
      ),
    ),
  );
}
