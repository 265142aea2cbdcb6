// Conversations in IndexedDB, in this browser and nowhere else.
//
// "summaries" holds what the list shows, "conversations" the trees, "tokens" the probabilities of each answer: the list opens
// without reading all that was ever said, and probabilities are read when they are looked at.

const NAME = "qafila";
const STORES = ["summaries", "conversations", "tokens"];

const channel = new BroadcastChannel("qafila.store");
let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      for (const store of STORES) request.result.createObjectStore(store, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function write(stores, work) {
  const database = await open();
  await new Promise((resolve, reject) => {
    const transaction = database.transaction(stores, "readwrite");
    transaction.oncomplete = resolve;
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
    work((name) => transaction.objectStore(name));
  });
}

const read = async (name) => (await open()).transaction(name).objectStore(name);

/** Called when another tab has changed something. */
export const onOtherTab = (listener) => channel.addEventListener("message", listener);

export async function listSummaries() {
  const all = await result((await read("summaries")).getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const loadConversation = async (id) => result((await read("conversations")).get(id));
export const allConversations = async () => result((await read("conversations")).getAll());
export const loadTokens = async (id) => (await result((await read("tokens")).get(id)))?.items ?? null;

export const saveTokens = (id, items) => write(["tokens"], (store) => store("tokens").put({ id, items }));

/** Keep a conversation. Messages that another tab added to it meanwhile stay: messages are only ever added. */
export async function saveConversation(conversation) {
  await write(["summaries", "conversations"], (store) => {
    const request = store("conversations").get(conversation.id);
    request.onsuccess = () => {
      const nodes = { ...request.result?.nodes, ...conversation.nodes };
      const active = { ...request.result?.active, ...conversation.active };
      const { id, title, updated } = conversation;
      store("conversations").put({ ...conversation, nodes, active });
      store("summaries").put({ id, title, updated });
    };
  });
  channel.postMessage("changed");
}

export async function deleteConversation(id) {
  const conversation = await loadConversation(id);
  await write(STORES, (store) => {
    store("summaries").delete(id);
    store("conversations").delete(id);
    for (const node of Object.keys(conversation?.nodes ?? {})) store("tokens").delete(node);
  });
  channel.postMessage("changed");
}

/** Letters as a search compares them: no case, no accents or Arabic vowel marks, one form each of alef, ya and ta marbuta. */
export function folded(text) {
  return text
    .normalize("NFKD")
    .replace(/[\u0640\p{M}]/gu, "")
    .replace(/[أإآٱ]/g, "ا")
    .replace(/ى/g, "ي")
    .replace(/ة/g, "ه")
    .toLowerCase();
}

/** Summaries of the conversations that hold every word, newest first, each with the words around the first hit. */
export async function search(query) {
  const words = folded(query).split(/\s+/).filter(Boolean);
  const found = [];
  for (const conversation of await allConversations()) {
    const texts = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.content)];
    const all = folded(texts.join("\n"));
    if (!words.every((word) => all.includes(word))) continue;
    const { id, title, updated } = conversation;
    const line = texts.slice(1).join("\n").split("\n").find((part) => folded(part).includes(words[0])) ?? "";
    found.push({ id, title, updated, excerpt: line.trim().slice(0, 120) });
  }
  return found.sort((a, b) => b.updated - a.updated);
}
