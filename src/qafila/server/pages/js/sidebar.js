// The conversations: grouped by day, searched as one types, renamed, exported, deleted.

import { confirmed, say } from "./dialogs.js";
import { asMarkdown, download, fileName } from "./download.js";
import { byId, h, icon } from "./elements.js";
import { dateTime, t } from "./i18n.js";
import { openMenu } from "./menu.js";
import { deleteConversation, listSummaries, loadConversation, onOtherTab, saveConversation, search } from "./store.js";

const DAY_MS = 86_400_000;

/** The heading that a time belongs under. */
function ageOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return t("today");
  if (time >= today - DAY_MS) return t("yesterday");
  return time >= today - 7 * DAY_MS ? t("thisWeek") : t("older");
}

export class Sidebar {
  #list = byId("conversations");
  #query = byId("search");
  #turn = 0;

  /** @param open called with a conversation's id. @param removed called with the id of one that was deleted. */
  constructor(chat, { open, removed }) {
    this.chat = chat;
    this.open = open;
    this.removed = removed;
    let waiting = 0;
    this.#query.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.draw(), 120);
    });
    this.#query.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.#query.value === "") return;
      event.stopPropagation();
      this.#query.value = "";
      this.draw();
    });
    onOtherTab(() => this.draw());
  }

  async draw() {
    // A slow search must not overwrite the result of a later one.
    this.#turn += 1;
    const turn = this.#turn;
    const query = this.#query.value.trim();
    let found;
    try {
      found = query === "" ? await listSummaries() : await search(query);
    } catch {
      this.#list.replaceChildren(h("p", { class: "none" }, t("notKept")));
      return;
    }
    if (turn !== this.#turn) return;
    if (found.length === 0) {
      this.#list.replaceChildren(h("p", { class: "none" }, t(query === "" ? /* t */ "noConversations" : /* t */ "nothingFound")));
      return;
    }
    const groups = new Map();
    for (const summary of found) {
      const age = query === "" ? ageOf(summary.updated) : t("found");
      groups.set(age, [...(groups.get(age) ?? []), summary]);
    }
    const parts = [...groups].map(([age, members]) =>
      h("section", {}, h("h2", { class: "age" }, age), h("ul", {}, members.map((summary) => this.#item(summary)))),
    );
    this.#list.replaceChildren(...parts);
  }

  #item(summary) {
    const title = summary.title || t("untitled");
    const here = summary.id === this.chat.conversation.id;
    const words = h("bdi", { class: "title" }, title);
    const open = h(
      "button",
      {
        type: "button",
        class: "conversation",
        title: `${title}\n${dateTime(summary.updated)}`,
        "aria-current": here ? "page" : null,
        on: { click: () => this.open(summary.id) },
      },
      words,
      summary.excerpt && h("span", { class: "excerpt", dir: "auto" }, summary.excerpt),
    );
    const item = h("li", { class: "conversation-row" }, open);
    const more = h(
      "button",
      {
        type: "button",
        class: "icon-button more",
        "aria-label": t("moreFor", { name: title }),
        "aria-haspopup": "menu",
        "aria-expanded": "false",
        on: { click: () => this.#menu(more, item, summary) },
      },
      icon("more"),
    );
    item.append(more);
    return item;
  }

  #menu(anchor, item, summary) {
    const exported = async (write) => write((await this.#load(summary.id)));
    openMenu(anchor, [
      { icon: "edit", label: t("rename"), run: () => this.#rename(item, summary) },
      {
        icon: "download",
        label: t("exportMarkdown"),
        run: () => exported((one) => download(fileName(one.title, "md"), "text/markdown", asMarkdown(one))),
      },
      {
        icon: "download",
        label: t("exportJson"),
        run: () =>
          exported((one) => download(fileName(one.title, "json"), "application/json", JSON.stringify(one, null, 2))),
      },
      { icon: "trash", label: t("delete"), danger: true, run: () => this.#delete(summary) },
    ]);
  }

  /** The one that is shown is the newest version of itself; others come from the store. */
  #load(id) {
    return id === this.chat.conversation.id ? this.chat.conversation : loadConversation(id);
  }

  #rename(item, summary) {
    const input = h("input", { class: "rename", dir: "auto", "aria-label": t("rename"), maxlength: "120", value: summary.title });
    let done = false;
    const finish = async (keep) => {
      if (done) return;
      done = true;
      const title = input.value.trim();
      if (keep && title !== "" && title !== summary.title) {
        const conversation = await this.#load(summary.id);
        conversation.title = title;
        await saveConversation(conversation);
      }
      await this.draw();
    };
    input.addEventListener("blur", () => finish(true));
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) finish(true);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      finish(false);
    });
    item.replaceChildren(input);
    input.focus();
    input.select();
  }

  async #delete(summary) {
    const name = summary.title || t("untitled");
    if (!(await confirmed(t("deleteTitle"), t("deleteText", { name }), t("delete")))) return;
    await deleteConversation(summary.id);
    this.removed(summary.id);
    say("deleted", {}, true);
    await this.draw();
  }
}
