"""A `ChatClient` that says what a test wrote down, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from qafila.chat.client import (
    Abilities,
    CallPiece,
    ChatRequest,
    Embedded,
    Event,
    Finished,
    Pooling,
    PromptRequest,
    Started,
    TextPiece,
    TokenInfo,
    ToolOdds,
    Usage,
)
from qafila.text.messages import Message, ToolCall, ToolSchema


class ScriptedClient:
    """Answers every request with the same pieces.

    Args:
        pieces: of the text. calls: (name, JSON arguments) that follow it. error: raised after the pieces.
        delay: seconds before each piece. refusal: raised instead of `Started`.
    """

    name = "scripted"
    context_length = 2048
    fingerprint: str | None = None

    def __init__(
        self,
        pieces: Sequence[str] = ("Hel", "lo"),
        *,
        calls: Sequence[tuple[str, str]] = (),
        error: Exception | None = None,
        refusal: Exception | None = None,
        delay: float = 0.0,
        stop_string: str | None = None,
    ) -> None:
        self.pieces, self.calls, self.error, self.refusal, self.delay = pieces, calls, error, refusal, delay
        self.stop_string = stop_string
        self.asked: list[ChatRequest | PromptRequest] = []
        self.running = 0
        self.cancelled = 0
        self.closed = False

    abilities = Abilities()

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        async for event in self._events(request):
            yield event

    async def complete(self, request: PromptRequest) -> AsyncIterator[Event]:
        async for event in self._events(request):
            yield event

    async def _events(self, request: ChatRequest | PromptRequest) -> AsyncIterator[Event]:
        self.asked.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.running += 1
        whole = False
        try:
            yield Started(5)
            generation = request.generation
            for piece in self.pieces:
                await asyncio.sleep(self.delay)
                for answer in range(generation.n):
                    infos = (TokenInfo(1, piece, piece.encode(), -0.5),) if generation.logprobs is not None else ()
                    yield TextPiece(answer, piece, infos)
            if self.error is not None:
                raise self.error
            made = []
            for index, (name, arguments) in enumerate(self.calls):
                made.append(ToolCall(f"call_{index}", name, {}))
                yield CallPiece(0, index, f"call_{index}", name, "")
                half = len(arguments) // 2
                yield CallPiece(0, index, None, None, arguments[:half])
                yield CallPiece(0, index, None, None, arguments[half:])
            for answer in range(generation.n):
                message = Message("assistant", "".join(self.pieces), tool_calls=tuple(made))
                yield Finished(answer, "tool_calls" if made else "stop", message, self.stop_string)
            yield Usage(5, 3, len(self.pieces) * generation.n)
            whole = True
        finally:
            self.running -= 1
            self.cancelled += not whole

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        return [TokenInfo(i, word, word.encode(), float("nan") if i == 0 else -1.0)
                for i, word in enumerate(str(prompt).split())]  # fmt: skip

    async def tool_odds(self, request: ChatRequest) -> ToolOdds:
        return ToolOdds(0.5, tuple((tool.name, 1 / len(request.tools)) for tool in request.tools))

    async def embed(self, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean") -> Embedded:
        return Embedded(tuple((0.6, 0.8) for _ in texts), sum(len(text) for text in texts))

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
        return sum(len(message.text) for message in messages) + len(tools)

    async def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        return [byte for message in messages for byte in message.text.encode()]

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        return [*([1] if bos else []), *text.encode()]

    async def detokenize(self, ids: Sequence[int]) -> str:
        return bytes(i % 256 for i in ids).decode(errors="replace")

    async def close(self) -> None:
        self.closed = True
