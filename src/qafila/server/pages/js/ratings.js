// Ratings as training data: one JSON object a line, in the conversational preference format that trainers read.

import { allConversations } from "./store.js";
import { messagesUpTo } from "./tree.js";

const answer = (node) => [{ role: "assistant", content: node.content }];

/** The lines of one conversation: pairs {prompt, chosen, rejected}, and single ratings {prompt, completion, label}. */
export function ratingsOf(conversation) {
  const { nodes } = conversation;
  const lines = [];
  for (const { parent, chosen, rejected } of conversation.comparisons) {
    const pair = [nodes[chosen], nodes[rejected]];
    // An answer that failed before its first word says nothing about preference.
    if (pair.some((node) => node.content === "")) continue;
    const prompt = messagesUpTo(conversation, nodes[parent]);
    lines.push({ prompt, chosen: answer(pair[0]), rejected: answer(pair[1]) });
  }
  for (const node of Object.values(nodes)) {
    if (node.role !== "assistant" || !node.rating || node.content === "") continue;
    const prompt = messagesUpTo(conversation, nodes[node.parent]);
    lines.push({ prompt, completion: answer(node), label: node.rating === "up" });
  }
  return lines;
}

/** All ratings of this browser as JSONL, and how many there are. */
export async function allRatings() {
  const lines = (await allConversations()).flatMap(ratingsOf);
  return { count: lines.length, text: lines.map((line) => `${JSON.stringify(line)}\n`).join("") };
}
