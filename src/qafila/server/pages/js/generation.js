// One answer while it is being written: the request, the text and probabilities as they arrive, and how fast.

import { ApiError, listModels, streamChat } from "./api.js";
import { preferredModel } from "./settings.js";
import { saveConversation, saveTokens } from "./store.js";
import { messagesUpTo } from "./tree.js";

// Often enough that a closed tab loses little, seldom enough that nobody notices.
const SAVE_EVERY_MS = 2000;
const ALTERNATIVES = 5;

/** A seed that the reader can type in again. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

/** One token as it is kept: text, log-probability, alternatives, and its bytes where they are part of a letter only. */
function kept({ token, logprob, top_logprobs: top, bytes }) {
  const item = { t: token, p: logprob, top: (top ?? []).map((other) => [other.token, other.logprob]) };
  if (token.includes("\ufffd") && bytes) item.b = bytes;
  return item;
}

export class Generation {
  #abort = new AbortController();
  #started = 0;
  #first = 0;
  #last = 0;
  #saved = 0;
  #usage = null;
  #pieces = 0;

  /**
   * @param conversation the tree it belongs to. @param node the assistant's node, filled in as the answer comes.
   * @param sampling temperature, topP and maxTokens, null where the model's own apply.
   * @param listener {onModel(generation), onText(generation), onEnd(generation)}.
   */
  constructor(conversation, node, sampling, listener) {
    this.conversation = conversation;
    this.node = node;
    this.tokens = [];
    this.sampling = sampling;
    this.listener = listener;
  }

  stop() {
    this.#abort.abort();
  }

  /** Tokens so far, tokens a second, and milliseconds to the first one; null where it is too early to say. */
  stats() {
    const tokens = this.#usage?.completion_tokens ?? (this.tokens.length || this.#pieces);
    const seconds = (this.#last - this.#first) / 1000;
    return {
      tokens,
      prompt: this.#usage?.prompt_tokens ?? null,
      cached: this.#usage?.prompt_tokens_details?.cached_tokens ?? null,
      // The first token's time is its own figure; the rate is of those after it.
      speed: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      firstMs: this.#first > 0 ? this.#first - this.#started : null,
    };
  }

  #request(probabilities) {
    const { conversation, node, sampling } = this;
    const body = {
      model: node.model,
      messages: messagesUpTo(conversation, conversation.nodes[node.parent]),
      seed: node.seed,
    };
    if (sampling.temperature !== null) body.temperature = sampling.temperature;
    if (sampling.topP !== null) body.top_p = sampling.topP;
    if (sampling.maxTokens !== null) body.max_completion_tokens = sampling.maxTokens;
    return probabilities ? { ...body, logprobs: true, top_logprobs: ALTERNATIVES } : body;
  }

  /** Run to the end. Never throws: what goes wrong is in the node's `finish` and `error`. */
  async run() {
    const { node } = this;
    this.#started = performance.now();
    try {
      if (node.model === null) {
        // It was sent before the page knew what the server offers.
        node.model = preferredModel(await listModels(this.#abort.signal));
        this.listener.onModel(this);
      }
      try {
        await this.#read(true);
      } catch (error) {
        // Not every server behind a gateway gives probabilities; an answer without them is still an answer.
        if (error.status !== 400 || !/logprobs/.test(`${error.param} ${error.message}`)) throw error;
        await this.#read(false);
      }
      node.finish ??= "stop";
    } catch (error) {
      if (error.name === "AbortError") {
        node.finish = "stopped";
      } else {
        const known = error instanceof ApiError ? error : new ApiError("page", error.message);
        node.finish = "error";
        node.error = { kind: known.kind, message: known.message, retryAfter: known.retryAfter, at: Date.now() };
      }
    }
    node.stats = this.stats();
    this.conversation.updated = Date.now();
    this.listener.onEnd(this);
    await this.save();
  }

  async #read(probabilities) {
    const { node } = this;
    for await (const chunk of streamChat(this.#request(probabilities), this.#abort.signal)) {
      if (chunk.usage) this.#usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      for (const token of choice.logprobs?.content ?? []) this.tokens.push(kept(token));
      const text = choice.delta?.content ?? "";
      if (text !== "" || choice.logprobs) {
        this.#last = performance.now();
        if (this.#first === 0) this.#first = this.#last;
      }
      if (text !== "") {
        node.content += text;
        this.#pieces += 1;
        this.listener.onText(this);
      }
      if (choice.finish_reason) node.finish = choice.finish_reason;
      if (performance.now() - this.#saved > SAVE_EVERY_MS) this.save();
    }
  }

  /** Keep what there is so far. A page that cannot save still chats: the reader is told once, when the list is opened. */
  async save() {
    this.#saved = performance.now();
    try {
      await saveConversation(this.conversation);
      if (this.tokens.length > 0) await saveTokens(this.node.id, this.tokens);
    } catch (error) {
      console.warn("not saved:", error.message);
    }
  }
}
