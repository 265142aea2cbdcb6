// Puts the page together.

import { askKey, say, showShortcuts } from "./dialogs.js";
import { Agent, agentPlace } from "./agent.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { byId, h } from "./elements.js";
import { currentLanguage, list, setLanguage, t, tn } from "./i18n.js";
import { installShortcuts } from "./keyboard.js";
import { MessagesView } from "./messages_view.js";
import { Models } from "./models.js";
import { hideCard } from "./probabilities.js";
import { applyTheme, change, isDark, settings } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { Sidebar } from "./sidebar.js";
import { path } from "./tree.js";

const phone = matchMedia("(max-width: 760px)");
const chat = new Chat();
const agent = new Agent(chat, { leave: leaveAgent });
const models = new Models(chat, () => agent.load());

const view = new MessagesView(chat, {
  edit: (node, text) => {
    chat.edit(node, text);
    view.toEnd();
  },
  regenerate: (node) => chat.regenerate(node),
  retry: (node) => chat.retry(node),
  compare: (node) => chat.compare(node),
  choose: (node) => {
    chat.choose(node);
    say("choiceKept", {}, true);
  },
  cancelComparison: () => chat.cancelComparison(),
  rate: (node, rating) => {
    chat.rate(node, rating);
    say(node.rating === null ? /* t */ "ratingRemoved" : /* t */ "ratingKept", {}, true);
  },
  branch: (node, step) => chat.branch(node, step),
});

const composer = new Composer({
  send: (text, attachments) => {
    chat.send(text, attachments);
    view.toEnd();
  },
  stop: () => chat.stop(),
  editLast: () => {
    const last = path(chat.conversation).findLast((node) => node.role === "user");
    document.querySelector(`[data-node="${last?.id}"] .edit`)?.click();
    return last !== undefined;
  },
});

const sidebar = new Sidebar(chat, {
  open: (id) => (location.hash = `#/c/${id}`),
  removed: (id) => {
    if (id === chat.conversation.id) newChat();
  },
});
const panel = new SettingsPanel(chat);

function showSidebar(shown) {
  document.body.classList.toggle("sidebar-shown", shown);
  byId("sidebar-toggle").setAttribute("aria-expanded", String(shown));
  byId("sidebar").inert = !shown;
  byId("veil").hidden = !(shown && phone.matches);
  if (!phone.matches) change({ sidebar: shown });
}

const sidebarShown = () => document.body.classList.contains("sidebar-shown");

function showChat() {
  agent.hide();
  drawTitle();
}

/** Back to the conversation that was shown before the agent. */
function leaveAgent() {
  const shown = path(chat.conversation).length > 0 ? `#/c/${chat.conversation.id}` : location.pathname;
  history.pushState(null, "", shown);
  showChat();
  sidebar.draw();
}

function compose() {
  if (agent.isShown()) agent.focus();
  else composer.focus();
}

function newChat() {
  showChat();
  if (location.hash !== "") history.pushState(null, "", location.pathname);
  chat.start();
  sidebar.draw();
  if (phone.matches) showSidebar(false);
  composer.focus();
}

/** Show the conversation, or the agent's page, that the address names. */
async function follow() {
  const place = agentPlace(location.hash);
  if (place !== null) {
    agent.show(place);
    if (phone.matches) showSidebar(false);
    return;
  }
  showChat();
  const id = /^#\/c\/(\w+)$/.exec(location.hash)?.[1];
  if (id === undefined || !(await chat.open(id).catch(() => false))) {
    if (path(chat.conversation).length > 0 || id !== undefined) newChat();
    return;
  }
  view.toEnd();
  sidebar.draw();
  if (phone.matches) showSidebar(false);
}

/** The conversation's name, in the browser's tab and as the page's heading. */
function drawTitle() {
  const { title } = chat.conversation;
  byId("title").textContent = title || t("newChat");
  document.title = title === "" ? t("appName") : `${title} · ${t("appName")}`;
}

function drawExamples() {
  const buttons = list("examples").map(([title, prompt]) =>
    h(
      "button",
      { type: "button", class: "example", on: { click: () => composer.fill(prompt) } },
      h("strong", {}, title),
      h("span", {}, prompt),
    ),
  );
  byId("examples").replaceChildren(...buttons);
}

function drawProbabilitiesSwitch() {
  byId("probabilities").setAttribute("aria-pressed", String(settings().probabilities));
  byId("legend").hidden = !settings().probabilities;
}

function toggleSettings() {
  if (panel.isOpen()) panel.close();
  else panel.open();
}

chat.addEventListener("path", () => {
  composer.setRunning(chat.running().length > 0);
  if (!agent.isShown()) drawTitle();
  const { id } = chat.conversation;
  const named = agent.isShown() || location.hash === `#/c/${id}`;
  if (path(chat.conversation).length > 0 && !named) history.pushState(null, "", `#/c/${id}`);
  if (chat.running().length > 0) say("answering");
});
chat.addEventListener("end", async ({ detail }) => {
  composer.setRunning(chat.running().length > 0);
  if (chat.comparison) view.draw(); // choosing is possible once both are there
  if (detail.node.error?.kind === "key" && (await askKey(true))) chat.retry(detail.node);
  else if (detail.node.finish !== "error") document.getElementById("status").textContent = tn("answered", detail.stats().tokens);
  sidebar.draw();
});
chat.addEventListener("saved", () => sidebar.draw()); // a new conversation is listed while its first answer is written
chat.addEventListener("unsaved", () => say("notKept", {}, true));

document.addEventListener("languagechanged", () => {
  drawTitle();
  drawExamples();
  view.reset();
  composer.update();
  panel.draw();
  sidebar.draw();
  models.draw();
  agent.redraw();
});

byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which page is shown
  compose();
});
byId("new-chat").addEventListener("click", newChat);
byId("new-chat-top").addEventListener("click", newChat);
byId("sidebar-toggle").addEventListener("click", () => showSidebar(!sidebarShown()));
byId("veil").addEventListener("click", () => showSidebar(false));
byId("settings-open").addEventListener("click", toggleSettings);
byId("shortcuts-open").addEventListener("click", showShortcuts);
byId("theme-switch").addEventListener("click", () => {
  change({ theme: isDark() ? "light" : "dark" });
  applyTheme();
  panel.draw();
});
byId("language-switch").addEventListener("click", () => {
  const language = currentLanguage() === "ar" ? "en" : "ar";
  change({ language });
  setLanguage(language);
});
byId("probabilities").addEventListener("click", () => {
  change({ probabilities: !settings().probabilities });
  drawProbabilitiesSwitch();
  view.redrawTexts();
});
byId("scroller").addEventListener("scroll", hideCard, { passive: true });
window.addEventListener("popstate", follow);
window.addEventListener("pagehide", () => {
  for (const generation of chat.running()) generation.save();
});
phone.addEventListener("change", () => showSidebar(!phone.matches && settings().sidebar));

installShortcuts({
  newChat,
  search: () => {
    if (agent.isShown()) leaveAgent();
    showSidebar(true);
    byId("search").focus();
  },
  settings: toggleSettings,
  shortcuts: showShortcuts,
  sidebar: () => showSidebar(!sidebarShown()),
  stop: () => {
    if (phone.matches && sidebarShown()) showSidebar(false);
    else if (!agent.isShown()) chat.stop();
  },
  compose,
});

setLanguage(currentLanguage());
drawProbabilitiesSwitch();
showSidebar(!phone.matches && settings().sidebar);
models.load();
follow();
if (!phone.matches) compose();
