// What can be done with a conversation: ask, stop, regenerate, edit, branch, compare, rate. Knows no DOM; views listen.

import { Generation, randomSeed } from "./generation.js";
import { change, settings } from "./settings.js";
import { loadConversation, saveConversation } from "./store.js";
import { activate, addNode, newConversation, path, siblings } from "./tree.js";

export class Chat extends EventTarget {
  #running = new Map(); // node id -> Generation; an answer goes on while another conversation is looked at

  constructor() {
    super();
    this.model = null; // chosen by whoever knows what the server offers
    this.conversation = newConversation(settings().system);
    this.comparison = null; // {parent, left, right} while two answers stand side by side
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Structure has changed: other messages, or others beside them, are to be shown. */
  #changed() {
    this.#tell("path");
  }

  async #save(conversation = this.conversation) {
    conversation.updated = Date.now();
    try {
      await saveConversation(conversation);
      this.#tell("saved");
    } catch (error) {
      this.#tell("unsaved", error);
    }
  }

  generationOf(node) {
    return this.#running.get(node.id) ?? null;
  }

  /** The running answers of the conversation that is shown. */
  running() {
    return [...this.#running.values()].filter((one) => one.conversation === this.conversation);
  }

  start() {
    this.conversation = newConversation(settings().system);
    this.comparison = null;
    this.#changed();
  }

  /** Show a kept conversation. False: there is none of this name. */
  async open(id) {
    const live = [...this.#running.values()].find((one) => one.conversation.id === id);
    const conversation = live?.conversation ?? (await loadConversation(id));
    if (!conversation) return false;
    this.conversation = conversation;
    this.comparison = null;
    this.#changed();
    return true;
  }

  send(content, attachments) {
    this.comparison = null;
    const last = path(this.conversation).at(-1) ?? null;
    this.#answer(addNode(this.conversation, last?.id ?? null, { role: "user", content, attachments }));
  }

  /** A new version of the reader's own message: a new branch, which is answered anew. */
  edit(node, content) {
    this.comparison = null;
    const { attachments } = node;
    this.#answer(addNode(this.conversation, node.parent, { role: "user", content, attachments }));
  }

  regenerate(node) {
    this.comparison = null;
    this.#answer(this.conversation.nodes[node.parent]);
  }

  /** Try again where nothing came; where a part came, that part stays as a version of its own. */
  retry(node) {
    if (node.content !== "") this.regenerate(node);
    else this.#run(Object.assign(node, { finish: null, error: null, model: this.model }));
  }

  /** A second answer to the same message, to be chosen from. */
  compare(node) {
    const other = this.#answer(this.conversation.nodes[node.parent]);
    this.comparison = { parent: node.parent, left: node, right: other };
    this.#changed();
  }

  choose(chosen) {
    const { parent, left, right } = this.comparison;
    const rejected = chosen === left ? right : left;
    this.conversation.comparisons.push({ parent, chosen: chosen.id, rejected: rejected.id, at: Date.now() });
    this.#endComparison(chosen);
  }

  cancelComparison() {
    this.#endComparison(this.comparison.left);
  }

  #endComparison(node) {
    for (const one of [this.comparison.left, this.comparison.right]) this.generationOf(one)?.stop();
    this.comparison = null;
    activate(this.conversation, node);
    this.#save();
    this.#changed();
  }

  rate(node, rating) {
    node.rating = node.rating === rating ? null : rating;
    this.#save();
    this.#tell("node", node);
  }

  /** Show the version that is `step` places after this one. */
  branch(node, step) {
    const versions = siblings(this.conversation, node);
    const next = versions[versions.indexOf(node) + step];
    if (!next) return;
    this.comparison = null;
    activate(this.conversation, next);
    this.#save();
    this.#changed();
  }

  setSystem(system) {
    this.conversation.system = system;
    change({ system });
    if (path(this.conversation).length > 0) this.#save();
  }

  stop() {
    for (const one of this.running()) one.stop();
  }

  #answer(question) {
    const { seed } = settings().sampling;
    const versions = Object.values(this.conversation.nodes).filter((node) => node.parent === question.id).length;
    const node = addNode(this.conversation, question.id, {
      role: "assistant",
      content: "",
      model: this.model,
      // With a seed of the reader's the first answer is always the same; a further version must still be another one.
      seed: seed === null ? randomSeed() : seed + versions,
      finish: null,
      error: null,
      stats: null,
      rating: null,
    });
    this.#run(node);
    return node;
  }

  #run(node) {
    const { conversation } = this;
    const generation = new Generation(conversation, node, settings().sampling, {
      onModel: () => this.#tell("node", node),
      onText: () => this.#tell("text", generation),
      onEnd: () => {
        this.#running.delete(node.id);
        this.#tell("end", generation);
      },
    });
    this.#running.set(node.id, generation);
    this.#changed();
    this.#save(conversation);
    generation.run();
  }
}
