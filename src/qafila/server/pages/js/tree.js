// A conversation is a tree of messages: editing or regenerating adds a sibling, and one child of each message is active.
//
// conversation = {id, title, created, updated, system, nodes: {id: node}, active: {parentId or "root": childId},
//                 comparisons: [{parent, chosen, rejected, at}]}
// user node = {id, parent, role: "user", content, attachments: [{name, size, text}], created}
// assistant node = {id, parent, role: "assistant", content, created, model, seed, finish, error, stats, rating}
//   finish is null while the answer is being written, then "stop", "length", "stopped" or "error".

const ROOT = "root";

/** A random name. Not crypto.randomUUID: that is missing where the page is opened over plain HTTP from another device. */
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export function newConversation(system) {
  const now = Date.now();
  const id = newId();
  return { id, title: "", created: now, updated: now, system, nodes: {}, active: {}, comparisons: [] };
}

/** Add a node below `parent` (null: a first message) and make it the active one there. */
export function addNode(conversation, parent, fields) {
  const node = { id: newId(), parent, created: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  conversation.active[parent ?? ROOT] = node.id;
  if (conversation.title === "" && node.role === "user") conversation.title = titleOf(node);
  return node;
}

export function titleOf(node) {
  const line = node.content.split("\n").find((part) => part.trim() !== "") ?? node.attachments?.[0]?.name ?? "";
  const letters = [...line.trim()];
  return letters.length > 60 ? `${letters.slice(0, 59).join("")}…` : letters.join("");
}

/** Nodes from the first message to the last active one. */
export function path(conversation) {
  const nodes = [];
  for (let id = conversation.active[ROOT]; id !== undefined; id = conversation.active[id]) {
    nodes.push(conversation.nodes[id]);
  }
  return nodes;
}

/** Nodes from the first message to this one, whichever branch it is on. */
export function ancestry(conversation, node) {
  const nodes = [];
  for (let at = node; at; at = conversation.nodes[at.parent]) nodes.unshift(at);
  return nodes;
}

/** The versions of a message, oldest first. */
export function siblings(conversation, node) {
  const found = Object.values(conversation.nodes).filter((other) => other.parent === node.parent);
  return found.sort((a, b) => a.created - b.created);
}

export function activate(conversation, node) {
  conversation.active[node.parent ?? ROOT] = node.id;
}

/** A user's message as the model reads it: attached files first, each in a fence longer than any inside it. */
export function promptText(node) {
  const files = (node.attachments ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((run) => run[0].length));
    const fence = "`".repeat(longest + 1);
    const language = /\.(\w+)$/.exec(name)?.[1] ?? "";
    return `${name}:\n${fence}${language}\n${text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...files, node.content].filter((part) => part !== "").join("\n\n");
}

/** The messages that lead to `node` and include it, in the API's form. Answers that failed empty are left out. */
export function messagesUpTo(conversation, node) {
  const messages = ancestry(conversation, node)
    .filter((one) => one.role === "user" || one.content !== "")
    .map((one) => ({ role: one.role, content: one.role === "user" ? promptText(one) : one.content }));
  const system = conversation.system.trim();
  return system === "" ? messages : [{ role: "system", content: system }, ...messages];
}
