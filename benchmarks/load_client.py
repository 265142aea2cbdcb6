"""Clients of a chat server: raw sockets in one thread, which notes what came when and reads it only afterwards.

A load generator beside the server takes processor time from it; this one parses nothing while it measures, and its own
processor time is part of what it tells.
"""

from __future__ import annotations

import gzip
import heapq
import json
import random
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "shared" / "data"
_END = b"\r\n0\r\n\r\n"  # of a chunked body; a header may well end in a 0


@dataclass
class Reply:
    """One request and what came of it; seconds are those of `time.perf_counter`.

    Attributes:
        prompt: number of the prompt. sent: when the request was written. pieces: (when, bytes) as they were received.
        ended: when the last byte came, or the client left. left: whether the client hung up by itself.
        error: of the connection.
    """

    prompt: int
    sent: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    left: bool = False
    error: str = ""


@dataclass
class Answer:
    """A reply, read.

    Attributes:
        status: of HTTP; 0 for none. text: of the answer. times: when each piece of text came, from the request on.
        tokens: generated, as the server counts them. finish: why it ended; empty where it did not.
        error: what went wrong; empty for nothing.
    """

    status: int
    text: str
    times: list[float]
    tokens: int
    finish: str
    error: str


class Connection:
    """A connection that is kept alive; one request at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.reply = Reply(-1)
        self.leaves: int | None = None
        self._tail = b""
        self._missing: int | None = None  # bytes of a body of known length
        self._requests = 0

    @property
    def stale(self) -> bool:
        """Whether the server closed a kept connection instead of answering; clients then ask again (RFC 9112, 9.3.1).

        llama-server does so after each streamed answer, and does not say it before.
        """
        return bool(self.reply.error) and not self.reply.pieces and self._requests > 1

    def send(self, prompt: int, request: bytes, leaves: int | None = None) -> Reply:
        """Write a request; with ``leaves`` the client hangs up after so many pieces."""
        self.reply = Reply(prompt, time.perf_counter())
        self.leaves = leaves
        self._tail = b""
        self._missing = None
        self._requests += 1
        # A request is smaller than a socket's buffer.
        if self.socket.send(request) != len(request):
            raise OSError("a request larger than the socket's buffer")
        return self.reply

    def receive(self) -> bool:
        """Take what has come; whether the reply is over."""
        reply = self.reply
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError as error:
            data, reply.error = b"", str(error)
        now = time.perf_counter()
        if not data:
            reply.ended = now
            reply.error = reply.error or "the server closed the connection"
            return True
        first = not reply.pieces
        reply.pieces.append((now, data))
        if self.leaves is not None and len(reply.pieces) > self.leaves:
            reply.left, reply.ended = True, now
            return True
        if first:
            head, _, body = data.partition(b"\r\n\r\n")
            length = _header(head, b"content-length")
            self._missing = None if length is None else int(length) - len(body)
        elif self._missing is not None:
            self._missing -= len(data)
        self._tail = (self._tail + data)[-len(_END) :]
        if (self._tail == _END) if self._missing is None else (self._missing <= 0):
            reply.ended = now
            return True
        return False

    def close(self, *, abruptly: bool = False) -> None:
        """Hang up, with a reset if ``abruptly``."""
        if abruptly:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def _header(head: bytes, name: bytes) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode()
    return None


def chat_request(address: tuple[str, int], model: str, messages: Sequence[dict[str, str]], max_tokens: int) -> bytes:
    """The bytes of a request for a greedy answer, streamed, on a connection that stays open."""
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return post(address, "/v1/chat/completions", body)


def post(address: tuple[str, int], path: str, body: Any) -> bytes:
    """The bytes of a request with a JSON body."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def closed_loop(
    address: tuple[str, int], requests: Sequence[bytes], clients: int, *, limit: float = 600
) -> tuple[list[Reply], float]:
    """Send all requests from so many clients, each its next one when its last is answered; replies, and seconds.

    Raises:
        TimeoutError: it took longer than ``limit`` seconds.
    """
    connections = [Connection(address) for _ in range(min(clients, len(requests)))]
    replies: list[Reply] = []
    waiting = iter(range(len(requests)))
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            number = next(waiting)
            replies.append(connection.send(number, requests[number]))
        open_ones = len(connections)
        while open_ones:
            if time.perf_counter() - started > limit:
                raise TimeoutError(f"{len(requests)} requests of {clients} clients took longer than {limit:.0f} s")
            for key, _ in selector.select(1):
                connection = key.data
                if not connection.receive():
                    continue
                if connection.stale:
                    old = connection.reply
                    selector.unregister(connection.socket)
                    connection.close()
                    connection = Connection(address)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                    replies[replies.index(old)] = connection.send(old.prompt, requests[old.prompt])
                    connection.reply.sent = old.sent
                    continue
                broken = bool(connection.reply.error)
                number = next(waiting, -1)
                if broken or number < 0:
                    selector.unregister(connection.socket)
                    connection.close()
                    open_ones -= 1
                if number < 0:
                    continue
                if broken:
                    connection = Connection(address)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                    open_ones += 1
                replies.append(connection.send(number, requests[number]))
        return replies, time.perf_counter() - started


@dataclass(frozen=True)
class Offer:
    """One request of an open loop.

    Attributes:
        at: when, in seconds. prompt: which.
        leaves: after how many pieces its client hangs up. patience: after how many seconds. None: not at all.
    """

    at: float
    prompt: int
    leaves: int | None
    patience: float | None


def offers(rate: float, seconds: float, prompts: int, vanishing: float, seed: int) -> Iterable[Offer]:
    """Requests at random moments, ``rate`` a second; a share of ``vanishing`` of the clients leaves at some time."""
    drawn = random.Random(seed)
    at = 0.0
    while (at := at + drawn.expovariate(rate)) < seconds:
        leaves = patience = None
        if drawn.random() < vanishing:
            if drawn.random() < 0.5:
                leaves = drawn.randrange(40)
            else:
                patience = drawn.uniform(0, 10)
        yield Offer(at, drawn.randrange(prompts), leaves, patience)


def open_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    arrivals: Iterable[Offer],
    *,
    most: int,
    done: Callable[[Reply], None],
    every: float = 1.0,
    tick: Callable[[float], None] = lambda _: None,
    drain: float = 120,
) -> int:
    """Send requests when they are due, whatever the server does; each reply goes to ``done``. How many were held back.

    Args:
        most: clients at once; what would be one more is held back, and counted.
        tick: is called about ``every`` so many seconds, with the seconds since the start.
        drain: seconds after the last request; who has no whole answer by then hangs up.
    """
    held_back = 0
    idle: list[Connection] = []
    busy: dict[Connection, Reply] = {}
    impatient: list[tuple[float, int, Connection, Reply]] = []
    coming = iter(arrivals)
    following = next(coming, None)
    with selectors.DefaultSelector() as selector:

        def over(connection: Connection) -> None:
            selector.unregister(connection.socket)
            reply = busy.pop(connection)
            if reply.left or reply.error:
                connection.close(abruptly=reply.left and reply.prompt % 2 == 0)
            else:
                idle.append(connection)
            done(reply)

        started = time.perf_counter()
        next_tick, last = every, 0.0
        while following is not None or busy:
            now = time.perf_counter() - started
            if now >= next_tick:
                tick(now)
                next_tick += every
            while impatient and impatient[0][0] <= now:
                _, _, connection, reply = heapq.heappop(impatient)
                if busy.get(connection) is reply:
                    reply.left, reply.ended = True, started + now
                    over(connection)
            while following is not None and following.at <= now:
                offer, following, last = following, next(coming, None), now
                if len(busy) >= most:
                    held_back += 1
                    continue
                connection = _usable(idle) or Connection(address)
                reply = busy[connection] = connection.send(offer.prompt, requests[offer.prompt], offer.leaves)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                if offer.patience is not None:
                    heapq.heappush(impatient, (now + offer.patience, id(reply), connection, reply))
            if following is None and now - last > drain:
                break
            dues = [next_tick, *(item[0] for item in impatient[:1]), *([following.at] if following else ())]
            for key, _ in selector.select(max(0.0, min(dues) - now)):
                if key.data.receive():
                    over(key.data)
        for connection, reply in list(busy.items()):
            reply.left = True
            over(connection)
        for connection in idle:
            connection.close()
    return held_back


def _usable(idle: list[Connection]) -> Connection | None:
    """A connection that the server has not closed meanwhile."""
    while idle:
        connection = idle.pop()
        try:
            connection.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return connection
        except OSError:
            pass
        connection.close()
    return None


def read(reply: Reply) -> Answer:
    """What a reply says, and when."""
    raw = b"".join(data for _, data in reply.pieces)
    head, _, body = raw.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    chunked = (_header(head, b"transfer-encoding") or "").lower() == "chunked"
    if status != 200 or not chunked:
        return Answer(status, body.decode(errors="replace"), [], 0, "", reply.error or f"status {status}")
    # Where each received piece ends in the stream, to tell when an event was complete.
    ends: list[tuple[int, float]] = []
    at = -len(head) - 4
    for when, data in reply.pieces:
        at += len(data)
        ends.append((at, when))
    answer = Answer(status, "", [], 0, "", reply.error)
    texts: list[str] = []
    piece = 0
    for end, event in _events(body):
        while ends[piece][0] < end:
            piece += 1
        if event == b"[DONE]":
            continue
        value = json.loads(event)
        if "error" in value:
            answer.error = str(value["error"])[:200]
            continue
        if value.get("usage"):
            answer.tokens = value["usage"]["completion_tokens"]
        for choice in value.get("choices", ()):
            if choice["delta"].get("content"):
                texts.append(choice["delta"]["content"])
                answer.times.append(ends[piece][1] - reply.sent)
            answer.finish = choice.get("finish_reason") or answer.finish
    answer.text = "".join(texts)
    if not (answer.finish or answer.error or reply.left):
        answer.error = "the answer has no end"
    return answer


def _events(body: bytes) -> Iterable[tuple[int, bytes]]:
    """(where it ends in the chunked body, data) of each server-sent event."""
    kept = b""
    at = 0
    while True:
        line = body.find(b"\r\n", at)
        if line < 0:
            return
        size = int(body[at:line].split(b";")[0] or b"0", 16)
        start = line + 2
        if size == 0 or len(body) < start + size:
            return
        kept += body[start : start + size]
        at = start + size + 2
        *events, kept = kept.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield start + size, event[6:]


@dataclass(frozen=True)
class Figures:
    """What one run of a closed loop shows; seconds."""

    tokens_per_second: float
    first_p50: float
    first_p99: float
    token_p50: float
    token_p99: float
    tokens: int
    errors: int
    client_cpu: float
    seconds: float


def measured(address: tuple[str, int], requests: Sequence[bytes], clients: int) -> tuple[Figures, list[Answer]]:
    """Send the requests and tell how fast they were answered.

    A request's time per token is that from its first piece of text to its last over the tokens after the first.
    """
    cpu = time.process_time()
    replies, seconds = closed_loop(address, requests, clients)
    cpu = time.process_time() - cpu
    answers = [read(reply) for reply in replies]
    good = [answer for answer in answers if not answer.error]
    first = [answer.times[0] for answer in good if answer.times]
    each = [
        (answer.times[-1] - answer.times[0]) / (answer.tokens - 1)
        for answer in good
        if len(answer.times) > 1 and answer.tokens > 1
    ]
    tokens = sum(answer.tokens for answer in good)
    return (
        Figures(
            tokens / seconds,
            percentile(first, 50),
            percentile(first, 99),
            percentile(each, 50),
            percentile(each, 99),
            tokens,
            len(answers) - len(good),
            cpu,
            seconds,
        ),
        answers,
    )


def percentile(values: Sequence[float], share: int) -> float:
    """The value that ``share`` percent are not above; NaN of none."""
    if not values:
        return float("nan")
    return (
        sorted(values)[min(len(values) - 1, len(values) * share // 100)] if share != 50 else statistics.median(values)
    )


def chats(most_bytes: int = 1000) -> list[list[dict[str, str]]]:
    """Real conversations, instructions and chats of several turns alike, in a fixed random order.

    Raises:
        SystemExit: the files are not there.
    """
    found: list[list[dict[str, str]]] = []
    for name, read_one in (("alpaca_4500.jsonl.gz", _instruction), ("oasst_953.jsonl.gz", _conversation)):
        path = DATA / name
        if not path.is_file():
            raise SystemExit(f"error: {path} is not there: the chats of this benchmark are real ones")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            some = [read_one(json.loads(line)) for line in lines]
        found += [chat for chat in some if chat and sum(len(m["content"].encode()) for m in chat) <= most_bytes][:900]
    random.Random(4).shuffle(found)
    return found


def _instruction(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["input"])))}]


def _conversation(row: dict[str, str]) -> list[dict[str, str]]:
    turns = []
    for part in row["input"].split("### Human:")[1:]:
        human, _, assistant = part.partition("### Assistant:")
        turns.append({"role": "user", "content": human.strip()})
        if assistant.strip():
            turns.append({"role": "assistant", "content": assistant.strip()})
    return turns if turns and turns[-1]["role"] == "user" and all(turn["content"] for turn in turns) else []
