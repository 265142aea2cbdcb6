"""`ChatClient`: what servers and agents ask of a model, wherever it runs.

`qafila.chat.local.LocalClient` answers out of an engine in this process, `qafila.chat.remote.RemoteClient` out of any
OpenAI-compatible server. What only the owner of an engine can give is named in `Abilities`, and asking for it elsewhere
is an error, never silently dropped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from qafila.engine.request import GrammarSpec as GrammarSpec
from qafila.text.messages import Message, ToolSchema

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
ToolMode: TypeAlias = Literal["auto", "none", "required"]
Pooling: TypeAlias = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class Generation:
    """How to generate; None follows the checkpoint (see `qafila.chat.options.Options` for each field).

    Attributes:
        stop: strings that end an answer.
        n: how many answers; they share one reading of the prompt.
        logprobs: None for none; else name so many of the likeliest tokens with each token (0: the token's own alone).
        answer: what the answer must match.
        tenant: cached prompts are shared within a tenant only. priority: higher goes first.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    n: int = 1
    logprobs: int | None = None
    answer: GrammarSpec | None = None
    tenant: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to be answered.

    Attributes:
        messages: in order.
        tools: what the model may call. Calls are generated under a grammar made of their schemas.
        tool_mode: ``auto``, ``none`` (no call), ``required`` (nothing but calls).
        tool_names: the only tools that may be called, of both kinds; None for all of them, an empty set for words
            alone, with the tools still in the prompt.
        narrowed: schemas of tools by name that calls must match instead of the ones that the model is told, such as
            values that exist now. Where there is no grammar they change nothing.
        parallel_tool_calls: whether one answer may hold several calls.
        untold: more tools that it may call, which stand in the messages and not among the tools of the prompt, so that
            a prompt only ever grows. A server elsewhere knows no such thing: there they are tools like all others.
        generation: how to generate.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...] = ()
    tool_mode: ToolMode = "auto"
    tool_names: frozenset[str] | None = None
    narrowed: Mapping[str, ToolSchema] = field(default_factory=dict)
    parallel_tool_calls: bool = True
    untold: tuple[ToolSchema, ...] = ()
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A text to be continued, outside any chat format.

    Attributes:
        prompt: text (which gets the BOS its checkpoint asks for) or token ids.
        suffix: text that follows the gap to be filled, for models with infill tokens.
        generation: how to generate.
    """

    prompt: str | tuple[int, ...]
    suffix: str | None = None
    generation: Generation = field(default_factory=Generation)


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """One generated token: its text, its bytes, its natural log-probability, and the likeliest in its place.

    ``id`` is None, ``data`` too, where a remote server does not tell; ``top`` holds (id, text, bytes, logprob).
    """

    id: int | None
    text: str
    data: bytes | None
    logprob: float
    top: tuple[tuple[int | None, str, bytes | None, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request is accepted: everything that could be wrong with it was found before this. First, and once."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More of one answer's text, and the tokens since the last piece if log-probabilities were asked for."""

    answer: int
    text: str
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class CallPiece:
    """More of one tool call of one answer: ``id`` and ``name`` in its first piece, then pieces of JSON arguments."""

    answer: int
    index: int
    id: str | None
    name: str | None
    arguments: str
    tokens: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """One answer is complete.

    Attributes:
        answer: which.
        reason: ``stop``, ``length`` or ``tool_calls``.
        message: the whole answer; it has ids where the engine is ours.
        stop_string: the stop string that ended it, if one did (None also where a remote server does not tell).
    """

    answer: int
    reason: FinishReason
    message: Message
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request; the prompt counts once for all answers. Last, and once.

    Attributes:
        prompt: tokens of the prompt. cached: those of them that were computed before. generated: of all answers.
        prompt_seconds: until the first token. seconds: in all.
    """

    prompt: int
    cached: int
    generated: int
    prompt_seconds: float = 0.0
    seconds: float = 0.0


Event: TypeAlias = Started | TextPiece | CallPiece | Finished | Usage


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a client can do beyond chatting."""

    completes: bool = True
    embeds: bool = True
    tokenizes: bool = True
    grammars: bool = True
    exact_likelihood: bool = True
    infills: bool = False
    tools: bool = True


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of length one, one a text, and the tokens that were read."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class ToolOdds:
    """What a model would do next.

    Attributes:
        call: probability that the answer begins as a call does.
        tools: probability of each tool, given that one of these is called; they sum to 1.
    """

    call: float
    tools: tuple[tuple[str, float], ...]


class ChatClient(Protocol):
    """A model one can talk to. Leaving a generator early (``aclose``) cancels its request."""

    @property
    def name(self) -> str:
        """What it is called, as a person would name it."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    @property
    def fingerprint(self) -> str | None:
        """Stands for weights, instruction set and cache type, joined by ``-``; None where they are not known."""

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together; None where it is not known."""

    def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Answer a conversation: `Started`, pieces, one `Finished` an answer, `Usage`.

        Raises:
            QafilaError: before `Started`, what is wrong with the request; later, what failed.
        """

    def complete(self, request: PromptRequest) -> AsyncIterator[Event]:
        """Continue a text; events and errors as `chat`."""

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        """The tokens of a text with their log-probabilities; that of the first is NaN."""

    async def tool_odds(self, request: ChatRequest) -> ToolOdds:
        """How likely the model is to call each of the tools that a request allows.

        Raises:
            UsageError: the client has no exact likelihoods (see `Abilities`).
        """

    async def embed(self, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean") -> Embedded:
        """A vector a text."""

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
        """Tokens of the prompt that `chat` would make of a conversation."""

    async def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The prompt that `chat` would make of a conversation."""

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text; ``special``: text that spells a special token is that token; ``bos``: begin with the BOS that
        the checkpoint asks for, if it asks for one."""

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    async def close(self) -> None:
        """Cancel what is under way and free what is held."""


async def whole(events: AsyncIterator[Event]) -> tuple[list[Message], Usage]:
    """The answers of a request, in order, and what it took."""
    messages: dict[int, Message] = {}
    usage = Usage(0, 0, 0)
    async for event in events:
        if isinstance(event, Finished):
            messages[event.answer] = event.message
        elif isinstance(event, Usage):
            usage = event
    return [messages[i] for i in sorted(messages)], usage
