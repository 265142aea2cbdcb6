"""A `ChatClient` that answers a run by a script: words or calls, one after another; it remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

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

#: (name, arguments) of a call.
Call: TypeAlias = tuple[str, dict[str, Any]]
#: Words, calls, or what the model fails with.
Answer: TypeAlias = str | Sequence[Call] | Exception

REMOTE = Abilities(
    completes=False, embeds=False, tokenizes=False, grammars=False, exact_likelihood=False, infills=False, tools=True
)
#: Tokens of each answer: of the prompt, those of them in the cache, and generated.
PROMPT, CACHED, GENERATED = 10, 4, 2


class ScriptedAgent:
    """Gives the answer whose number is that of the answers already in the conversation, so that it needs no memory.

    Args:
        answers: in order; after the last one it says "done".
        abilities: by default those of a model somewhere else: no token ids, no likelihoods.
        delay: seconds before each answer. hold: an answer waits until this is set.
        odds: of the tools, where its abilities say that it knows.
    """

    context_length: int | None = 2048

    def __init__(
        self,
        answers: Sequence[Answer],
        *,
        abilities: Abilities = REMOTE,
        delay: float = 0.0,
        hold: asyncio.Event | None = None,
        name: str = "scripted",
        fingerprint: str | None = None,
        odds: Callable[[ChatRequest], ToolOdds] | None = None,
        reason: str = "stop",
    ) -> None:
        self.answers, self.abilities, self.delay, self.hold = answers, abilities, delay, hold
        self.name, self.fingerprint, self.odds, self.reason = name, fingerprint, odds, reason
        self.asked: list[ChatRequest] = []
        self.cancelled = 0
        self.closed = False

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        self.asked.append(request)
        number = sum(message.role == "assistant" for message in request.messages)
        answer = self.answers[number] if number < len(self.answers) else "done"
        try:
            await asyncio.sleep(self.delay)
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(answer, Exception):
            raise answer
        yield Started(PROMPT)
        text, calls = (answer, ()) if isinstance(answer, str) else ("", answer)
        if text:
            yield TextPiece(0, text)
        made = []
        for index, (called, arguments) in enumerate(calls):
            # Ids are the same in every answer, as some servers give them.
            made.append(ToolCall(f"call_{index}", called, arguments))
            tokens = (TokenInfo(1, "x", b"x", -0.25),) if request.generation.logprobs is not None else ()
            yield CallPiece(0, index, f"call_{index}", called, json.dumps(arguments), tokens)
        reason: Any = "tool_calls" if made else self.reason
        yield Finished(0, reason, Message("assistant", text, tool_calls=tuple(made)))
        yield Usage(PROMPT, CACHED, GENERATED, 0.01, 0.02)

    async def complete(self, request: PromptRequest) -> AsyncIterator[Event]:
        raise NotImplementedError
        yield Started(0)

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        raise NotImplementedError

    async def tool_odds(self, request: ChatRequest) -> ToolOdds:
        assert self.odds is not None
        return self.odds(request)

    async def embed(self, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean") -> Embedded:
        raise NotImplementedError

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
        return len(await self.render(messages, tools))

    async def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        return [byte for message in messages for byte in message.text.encode()]

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        return [*text.encode()]

    async def detokenize(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    async def close(self) -> None:
        self.closed = True
