// What an edit does to a file, line by line: signs and spoken words say what colours show.

import { h } from "./elements.js";
import { firstStrong, number, t, tn } from "./i18n.js";
import { seen } from "./unseen.js";

const LINES_SHOWN = 120;
const LINES_MORE = 2000;
const MOST_LOOKED_AT = 10_000;
const HUNK = /^@@ -\d+(?:,\d+)? \+(\d+)/;

function row(line) {
  const hunk = HUNK.exec(line);
  if (hunk) return h("li", { class: "diff-place" }, h("bdi", {}, t("fromLine", { n: number(Number(hunk[1])) })));
  if (line.startsWith("\\")) return h("li", { class: "diff-place", dir: "auto" }, line);
  const [kind, word] = { "+": ["ins", t("lineAdded")], "-": ["del", t("lineRemoved")] }[line[0]] ?? ["span", null];
  const sign = h("span", { class: "diff-sign", "aria-hidden": "true" }, kind === "span" ? "" : line[0]);
  // The spoken word stands apart: the line's own letters alone say which way it goes.
  const text = h("span", { class: "diff-text", dir: "auto" }, seen(line.slice(1).replace(/\r$/, "")));
  return h(
    "li",
    { class: `diff-line ${kind}` },
    sign,
    h(kind, {}, word && h("span", { class: "offscreen" }, `${word} `), text),
  );
}

/** One file's change. @param edit {path, diff}: a unified diff, or a line in words where there is none. */
export function diffView({ path: name, diff }) {
  const path = seen(name);
  const lines = diff.replace(/\n$/, "").split("\n");
  const unified = lines.some((line) => HUNK.test(line));
  // The file's name stands above; what comes before the first place would say it twice more.
  const first = lines.findIndex((line) => HUNK.test(line));
  const shown = unified ? lines.slice(first) : [];
  const notes = (unified ? lines.slice(0, first) : lines).filter((line) => !/^(---|\+\+\+) /.test(line));
  const count = (sign) => shown.filter((line) => line.startsWith(sign)).length;
  const way = firstStrong(
    shown
      .filter((line) => !HUNK.test(line))
      .join("\n")
      .slice(0, MOST_LOOKED_AT),
  );
  const list = h(
    "ol",
    { class: "diff-lines", dir: way, tabindex: "0", "aria-label": t("changesOf", { name: path }) },
    shown.slice(0, LINES_SHOWN).map(row),
  );
  let rest = shown.slice(LINES_SHOWN);
  const more = h("button", { type: "button", class: "text-button" }, tn("showMoreLines", rest.length));
  more.addEventListener("click", () => {
    list.append(...rest.slice(0, LINES_MORE).map(row));
    rest = rest.slice(LINES_MORE);
    more.textContent = tn("showMoreLines", rest.length);
    list.focus();
    if (rest.length === 0) more.remove();
  });
  const counts =
    unified &&
    h(
      "span",
      { class: "diff-counts", dir: "ltr" },
      h("ins", {}, `+${number(count("+"))}`),
      h("del", {}, `−${number(count("-"))}`),
    );
  return h(
    "figure",
    { class: "diff" },
    h("figcaption", {}, h("bdi", { class: "path", dir: "ltr" }, path), counts),
    notes.map((note) => h("p", { class: "diff-note", dir: "auto" }, seen(note))),
    unified && list,
    rest.length > 0 && more,
  );
}
