// What the agent remembers, by kind: search, edit, approve what it proposes, forget, add.

import { addMemory, changeMemory, forgetMemory, listMemory } from "./agent_api.js";
import { attempt } from "./attempt.js";
import { confirmed, say } from "./dialogs.js";
import { h, icon } from "./elements.js";
import { dateTime, t } from "./i18n.js";
import { KIND_NAMES, kindWord } from "./run_words.js";

// The server says so too; the field says it while one writes.
const MOST_CHARACTERS = 600;
// Episodes are written by the agent alone, out of its tasks.
const ADDED_KINDS = ["profile", "fact"];

export class MemoryView {
  #items = [];
  #editing = null;

  constructor() {
    this.slot = h("div");
    this.list = h("div", { class: "memory" });
    this.search = h("input", { type: "search", dir: "auto", autocomplete: "off" });
    this.search.addEventListener("input", () => this.#draw());
    this.element = h("div", { class: "scroller" });
    this.redraw();
  }

  open() {
    return attempt(this.slot, listMemory, (items) => {
      this.#items = items;
      this.#draw();
    });
  }

  focus() {
    this.title.focus();
  }

  redraw() {
    this.title = h("h1", { tabindex: "-1" }, t("memory"));
    this.search.setAttribute("aria-label", t("searchMemory"));
    this.search.placeholder = t("searchMemory");
    const field = h("label", { class: "search-field" }, icon("search"), this.search);
    const page = h(
      "div",
      { class: "agent-page" },
      this.title,
      h("p", { class: "note" }, t("memoryNote")),
      this.#adding(),
      this.slot,
      field,
      this.list,
    );
    this.element.replaceChildren(page);
    this.#draw();
  }

  #adding() {
    const kind = h(
      "select",
      { "aria-label": t("kind") },
      ADDED_KINDS.map((name) => h("option", { value: name }, kindWord(name))),
    );
    kind.value = "fact";
    const text = h("textarea", {
      rows: "2",
      dir: "auto",
      maxlength: String(MOST_CHARACTERS),
      "aria-label": t("newMemory"),
      placeholder: t("newMemory"),
    });
    const button = h("button", { type: "submit", class: "button" }, icon("plus"), t("add"));
    const submit = (event) => {
      event.preventDefault();
      const words = text.value.trim();
      if (words === "") return;
      this.#change(() => addMemory(kind.value, words), /* t */ "memoryKept").then((well) => {
        if (well) text.value = "";
      });
    };
    return h(
      "form",
      { class: "memory-add", on: { submit } },
      text,
      h("div", { class: "goal-row" }, kind, h("span", { class: "spacer" }), button),
    );
  }

  /** Ask for a change, and show what is kept then. */
  async #change(action, told) {
    const well = await attempt(this.slot, action, () => {
      this.#editing = null;
      say(told, {}, true);
    });
    if (well) await this.open();
    if (document.activeElement === document.body) this.focus(); // the button that was pressed is gone
    return well;
  }

  #draw() {
    const wanted = this.search.value.trim().toLocaleLowerCase();
    const found = this.#items.filter(({ text, source }) => `${text} ${source}`.toLocaleLowerCase().includes(wanted));
    const groups = [
      [t("proposed"), found.filter(({ state }) => state === "proposed")],
      ...KIND_NAMES.map((kind) => [
        kindWord(kind),
        found.filter((item) => item.state !== "proposed" && item.kind === kind),
      ]),
    ].filter(([, items]) => items.length > 0);
    const sections = groups.map(([name, items]) =>
      h(
        "section",
        {},
        h("h2", {}, name),
        h(
          "ul",
          {},
          items.map((item) => this.#item(item)),
        ),
      ),
    );
    if (sections.length === 0)
      sections.push(h("p", { class: "none" }, t(wanted === "" ? /* t */ "noMemory" : /* t */ "nothingFound")));
    this.list.replaceChildren(...sections);
  }

  #item(item) {
    if (this.#editing === item.id) return this.#editor(item);
    const button = (name, label, click, kind = "") =>
      h("button", { type: "button", class: `button small ${kind}`, on: { click } }, icon(name), label);
    const proposed = item.state === "proposed";
    const trust = item.trusted ? null : h("span", { class: "effect grave" }, t("untrusted"));
    const run = item.run ? h("a", { href: `#/agent/runs/${encodeURIComponent(item.run)}` }, t("itsRun")) : null;
    return h(
      "li",
      { class: "memory-item", data: { id: item.id } },
      h("p", { class: "memory-text", dir: "auto" }, item.text),
      h(
        "p",
        { class: "memory-facts" },
        proposed && h("span", {}, kindWord(item.kind)),
        h("bdi", {}, item.source === "user" ? t("you") : item.source),
        trust,
        h("time", {}, dateTime(item.created * 1000)),
        run,
      ),
      h(
        "div",
        { class: "step-tools" },
        proposed &&
          button("check", t("keep"), () =>
            this.#change(() => changeMemory(item.id, { state: "kept" }), /* t */ "memoryKept"),
          ),
        button("edit", t("edit"), () => this.#edit(item.id)),
        button("trash", t("forget"), () => this.#forget(item), "danger"),
      ),
    );
  }

  #edit(id) {
    this.#editing = id;
    this.#draw();
    this.list.querySelector(id === null ? "button" : "textarea")?.focus();
  }

  #editor(item) {
    const text = h("textarea", {
      rows: "3",
      dir: "auto",
      maxlength: String(MOST_CHARACTERS),
      "aria-label": t("edit"),
      value: item.text,
    });
    const keep = () => this.#change(() => changeMemory(item.id, { text: text.value.trim() }), /* t */ "memoryKept");
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.#edit(null);
    });
    return h(
      "li",
      { class: "memory-item", data: { id: item.id } },
      text,
      h(
        "div",
        { class: "step-tools" },
        h(
          "button",
          { type: "button", class: "button small primary", on: { click: () => text.value.trim() !== "" && keep() } },
          t("keep"),
        ),
        h("button", { type: "button", class: "button small", on: { click: () => this.#edit(null) } }, t("cancel")),
      ),
    );
  }

  async #forget(item) {
    const MOST = 200;
    const name = item.text.length > MOST ? `${item.text.slice(0, MOST)}…` : item.text;
    if (!(await confirmed(t("forgetTitle"), t("forgetText", { name }), t("forget")))) return;
    await this.#change(() => forgetMemory(item.id), /* t */ "forgotten");
  }
}
