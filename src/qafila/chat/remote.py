"""`RemoteClient`: a `ChatClient` over a server with OpenAI's API (vLLM, SGLang, llama.cpp, OpenAI, another qafila)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from qafila.chat.client import (
    Abilities,
    ChatRequest,
    Embedded,
    Event,
    Pooling,
    PromptRequest,
    Started,
    TokenInfo,
    ToolOdds,
)
from qafila.chat.dialects import OTHER, Dialect
from qafila.chat.remote_answer import RemoteAnswers
from qafila.chat.remote_body import chat_body, messages_of, prompt_body
from qafila.chat.upstream import Connection
from qafila.errors import UpstreamError, UsageError
from qafila.text.messages import Message, ToolSchema


class RemoteClient:
    """Asks another server.

    What a prompt takes is known to that server alone: `Started` says 0 tokens, and `Usage` at the end what they were.
    ``Generation.priority`` means nothing there; ``Generation.tenant`` keeps prompts apart where the server can (vLLM's
    ``cache_salt``), else its cache is shared among all who come through this client.

    Args:
        connection: to the server; `close` closes it.
        model: its name there. name: what the client is called; by default the same.
        dialect: what the server has beyond OpenAI's API.
        context_length: of the model, if it is known.
    """

    def __init__(
        self,
        connection: Connection,
        model: str,
        name: str | None = None,
        *,
        dialect: Dialect = OTHER,
        context_length: int | None = None,
    ) -> None:
        self._connection, self._model, self._name, self._dialect = connection, model, name or model, dialect
        self._context_length = context_length
        self._where = f"model {self._name!r}"

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    @property
    def abilities(self) -> Abilities:
        """What can be asked; whether the model itself embeds, infills or calls tools its server says when it is."""
        dialect = self._dialect
        return Abilities(
            tokenizes=dialect.tokenizing is not None,
            grammars=dialect.regex is not None and dialect.lark is not None,
            exact_likelihood=False,
            infills=True,
        )

    @property
    def fingerprint(self) -> str | None:
        """Not known."""
        return None

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together, if it is known."""
        return self._context_length

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Answer a conversation; see `ChatClient.chat`."""
        body = chat_body(request, self._model, self._dialect)
        async with aclosing(self._events("/chat/completions", body, request.generation.n)) as events:
            async for event in events:
                yield event

    async def complete(self, request: PromptRequest) -> AsyncIterator[Event]:
        """Continue a text."""
        body = prompt_body(request, self._model, self._dialect)
        async with aclosing(self._events("/completions", body, request.generation.n)) as events:
            async for event in events:
                yield event

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        """Not offered: servers do not agree on how log-probabilities of a prompt are asked for.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"echo: {self._where} runs on another server, which tells log-probabilities of answers only")

    async def tool_odds(self, request: ChatRequest) -> ToolOdds:
        """No other server tells them.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self._where}: another server gives no exact likelihoods of tools")

    async def embed(self, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean") -> Embedded:
        """A vector a text, pooled as the server does; of length one.

        Raises:
            UsageError: ``last`` is asked for: OpenAI's API has no word for it.
        """
        if pooling != "mean":
            raise UsageError(f"pooling: {self._where} runs on another server, which pools in its own way; leave it out")
        inputs = [text if isinstance(text, str) else list(text) for text in texts]
        told = await self._connection.post(
            "/embeddings", {"model": self._model, "input": inputs, "encoding_format": "float"}
        )
        try:
            items = sorted(told["data"], key=lambda item: int(item["index"]))
            vectors = tuple(_unit([float(value) for value in item["embedding"]]) for item in items)
            tokens = int((told.get("usage") or {}).get("prompt_tokens") or 0)
        except (KeyError, TypeError, ValueError):
            raise self._strange("embeddings") from None
        if len(vectors) != len(inputs):
            raise self._strange("embeddings")
        return Embedded(vectors, tokens)

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
        """Tokens of the prompt that the server would make of a conversation."""
        return len(await self.render(messages, tools))

    async def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The prompt that the server would make of a conversation.

        Raises:
            UsageError: this kind of server does not tell.
        """
        body: dict[str, Any] = {"messages": messages_of(messages)}
        if tools:
            body["tools"] = [tool.to_dict() for tool in tools]
        if self._dialect.tokenizing in ("qafila", "vllm"):
            return await self._tokens({"model": self._model, **body})
        if self._dialect.tokenizing == "llama.cpp":
            prompt = (await self._connection.post("/apply-template", body, root=True)).get("prompt")
            if not isinstance(prompt, str):
                raise self._strange("a prompt")
            return await self._tokens({"content": prompt, "parse_special": True, "add_special": True})
        raise self._untold("the tokens of a conversation")

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text. vLLM and SGLang always take text that spells a special token for that token.

        Raises:
            UsageError: this kind of server does not tell.
        """
        match self._dialect.tokenizing:
            case "qafila":
                body = {"model": self._model, "prompt": text, "add_special_tokens": bos, "parse_special": special}
            case "vllm" | "sglang":
                body = {"model": self._model, "prompt": text, "add_special_tokens": bos}
            case "llama.cpp":
                body = {"content": text, "add_special": bos, "parse_special": special}
            case None:
                raise self._untold("the tokens of a text")
        return await self._tokens(body)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids.

        Raises:
            UsageError: this kind of server does not tell.
        """
        if self._dialect.tokenizing is None:
            raise self._untold("the text of tokens")
        named = {} if self._dialect.tokenizing == "llama.cpp" else {"model": self._model}
        told = await self._connection.post("/detokenize", {**named, "tokens": list(ids)}, root=True)
        for key in ("prompt", "content", "text"):
            if isinstance(text := told.get(key), str):
                return text
        raise self._strange("a text")

    async def close(self) -> None:
        """End what is under way and close the connections."""
        await self._connection.close()

    async def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        tokens = (await self._connection.post("/tokenize", body, root=True)).get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise self._strange("tokens")
        return cast("list[int]", tokens)

    async def _events(self, path: str, body: Mapping[str, Any], n: int) -> AsyncGenerator[Event, None]:
        answers = RemoteAnswers(n, self._where)
        async with self._connection.stream(path, body) as chunks:
            yield Started(0)
            async for chunk in chunks:
                for event in answers.push(chunk):
                    yield event
        yield answers.finish()

    def _strange(self, what: str) -> UpstreamError:
        return UpstreamError(f"{self._where}: its server answered with something else than {what}", status=502)

    def _untold(self, what: str) -> UsageError:
        return UsageError(f"{self._where} runs on a server ({self._dialect.name}) that does not tell {what}")


def _unit(vector: list[float]) -> tuple[float, ...]:
    length = math.hypot(*vector)
    if not length or not math.isfinite(length):
        raise ValueError
    return tuple(value / length for value in vector)
