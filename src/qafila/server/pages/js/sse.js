// Server-sent events out of a response body (fetch, because EventSource cannot POST).

/** Yield each event as {kind, data}. Lines may be cut anywhere by the network, and end in LF or CRLF. */
export async function* namedEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let kind = "message";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length > 0) yield { kind, data: data.join("\n") };
          kind = "message";
          data = [];
        } else if (line.startsWith("event:")) {
          kind = line.slice(6).trim();
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
    if (data.length > 0) yield { kind, data: data.join("\n") };
  } finally {
    // Whoever stops early must not leave the server generating for nobody.
    reader.cancel().catch(() => {});
  }
}

/** Yield the data of each event. */
export async function* events(body) {
  for await (const { data } of namedEvents(body)) yield data;
}
