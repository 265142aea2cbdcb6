// The server's agent: runs and their events, approvals, and what it remembers.

import { ApiError, ask } from "./api.js";
import { namedEvents } from "./sse.js";

const ROOT = "/v1/agent";
const RUNS_SHOWN = 30;

const get = async (path) => (await ask(`${ROOT}${path}`)).json();

async function send(method, path, body) {
  const options = { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await ask(`${ROOT}${path}`, options);
  return response.status === 204 ? {} : response.json();
}

const runPath = (id) => `/runs/${encodeURIComponent(id)}`;
const memoryPath = (id) => `/memory/${encodeURIComponent(id)}`;

export const describe = () => get("");
export const listRuns = (after = null) =>
  get(`/runs?limit=${RUNS_SHOWN}${after === null ? "" : `&after=${encodeURIComponent(after)}`}`);
export const getRun = (id) => get(runPath(id));
export const beginRun = (body) => send("POST", "/runs", body);
export const stopRun = (id) => send("POST", `${runPath(id)}/stop`, {});
export const sayToRun = (id, text) => send("POST", `${runPath(id)}/say`, { text });
export const resumeRun = (id, text) => send("POST", `${runPath(id)}/resume`, text === "" ? {} : { text });
export const undoRun = (id, all) => send("POST", `${runPath(id)}/undo`, { all });
export const forkRun = (id, event) => send("POST", `${runPath(id)}/fork`, { event });
export const explainEvent = (id, event) => get(`${runPath(id)}/explain/${event}`);
export const decide = (id, calls, allowed, reason) =>
  send("POST", `${runPath(id)}/decide`, { calls, allowed, ...(reason === "" ? {} : { reason }) });

export const listApprovals = async () => (await get("/approvals")).data;

export const listMemory = async () => (await get("/memory")).data;
export const addMemory = (kind, text) => send("POST", "/memory", { kind, text });
export const changeMemory = (id, change) => send("PATCH", memoryPath(id), change);
export const forgetMemory = (id) => ask(`${ROOT}${memoryPath(id)}`, { method: "DELETE" });

/**
 * Yield a run's events after number `after` (null: all of them) as they happen, until the run ends or waits.
 * Throws ApiError, also when the stream breaks off, and AbortError when `signal` says stop.
 */
export async function* runEvents(id, after, signal) {
  const from = after === null ? "" : `?after=${after}`;
  const response = await ask(`${ROOT}${runPath(id)}/events${from}`, {
    headers: { Accept: "text/event-stream" },
    signal,
  });
  try {
    for await (const { kind, data } of namedEvents(response.body)) {
      if (kind === "end") return;
      const one = JSON.parse(data);
      if (one.error) throw new ApiError("server", one.error.message);
      yield one;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("broken", error.message);
  }
  throw new ApiError("broken", "the stream ended before the run did");
}
