// The server's OpenAI-compatible API: models, and chat completions as they stream.

import { events } from "./sse.js";

const KEY = "qafila.key";

/** What the server answered instead of an answer; `kind` says which of the page's messages fits. */
export class ApiError extends Error {
  constructor(kind, message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

export const apiKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);

/** Keep the key for this tab, or until it is forgotten when the reader asks for that. */
export function keepKey(key, remember) {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  (remember ? localStorage : sessionStorage).setItem(KEY, key);
}

function kindOf(status, code) {
  if (code === "context_length_exceeded") return "context";
  if (status === 401 || status === 403) return "key";
  if (status === 429 || status === 503) return "busy";
  if (status === 404 && code === "model_not_found") return "model";
  return status >= 500 ? "server" : "request";
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, perhaps: the status alone must do.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ApiError(kindOf(response.status, error.code), error.message ?? `HTTP ${response.status}`, {
    status: response.status,
    param: error.param ?? null,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

/** Ask the server, with the key where there is one. Throws ApiError for whatever is no answer, and AbortError. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = apiKey();
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("offline", error.message);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** Names of the models that the server offers, its default first. Throws ApiError, and AbortError when `signal` says stop. */
export async function listModels(signal) {
  const answer = await (await ask("/v1/models", { signal })).json();
  return answer.data.map((model) => model.id);
}

/**
 * Yield the chunks of one streamed chat completion.
 * Throws ApiError, also when the stream breaks off or carries an error, and AbortError when `signal` says stop.
 */
export async function* streamChat(body, signal) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(kindOf(500, chunk.error.code), chunk.error.message);
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("broken", error.message);
  }
  throw new ApiError("broken", "the stream ended without [DONE]");
}
