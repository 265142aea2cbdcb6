// What took time in a run, out of its events: answers of the model, calls of tools, waits for a person. Knows no DOM.

/**
 * The spans in order: {kind: "model" | "tool" | "wait", step, name, from, to, spent}; times in seconds since 1970.
 * `spent` is an answer's {read, cached, generated, first_token_seconds}, null for the others.
 */
export function spansOf(recorded) {
  const spans = [];
  const asked = new Map();
  for (const { at, step, event } of recorded) {
    if (event.kind === "answered") {
      const names = (event.message.tool_calls ?? []).map((call) => call.function.name);
      spans.push({
        kind: "model",
        step,
        name: names.join(", "),
        from: at - event.spent.seconds,
        to: at,
        spent: event.spent,
      });
    } else if (event.kind === "observed") {
      spans.push({ kind: "tool", step, name: event.name, from: at - event.seconds, to: at, spent: null });
    } else if (event.kind === "asked") {
      asked.set(event.intent.call, { at, name: event.intent.name });
    } else if (event.kind === "decided" && asked.has(event.call)) {
      const { at: from, name } = asked.get(event.call);
      spans.push({ kind: "wait", step, name, from, to: at, spent: null });
      asked.delete(event.call);
    }
  }
  return spans;
}

/**
 * Places on an axis of work alone: times at which neither the model nor a tool was at work take no room.
 * Returns {total, place(time)} in seconds.
 */
export function workAxis(spans) {
  const work = spans.filter(({ kind }) => kind !== "wait").sort((one, other) => one.from - other.from);
  const pieces = [];
  for (const { from, to } of work) {
    const last = pieces.at(-1);
    if (last && from <= last.to) last.to = Math.max(last.to, to);
    else pieces.push({ from, to });
  }
  const place = (time) => pieces.reduce((sum, { from, to }) => sum + Math.max(0, Math.min(time, to) - from), 0);
  return { total: pieces.reduce((sum, { from, to }) => sum + to - from, 0), place };
}
