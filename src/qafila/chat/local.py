"""`LocalClient`: a `ChatClient` over the engine in this process."""

from __future__ import annotations

import asyncio
import gc
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qafila.chat import options as opt
from qafila.chat.answer import Answer, describe
from qafila.chat.client import (
    Abilities,
    ChatRequest,
    Embedded,
    Event,
    Generation,
    Pooling,
    PromptRequest,
    Started,
    TokenInfo,
    ToolOdds,
    Usage,
)
from qafila.chat.options import Options
from qafila.chat.pump import Pump, show_thread
from qafila.chat.tool_odds import tool_odds
from qafila.engine.handle import Handle
from qafila.engine.request import GrammarSpec, Request, Token
from qafila.errors import ChatError, ModelClosedError
from qafila.text.call_stream import CallStream
from qafila.text.messages import Message, ToolSchema
from qafila.text.tool_grammar import call_grammar, words_grammar

if TYPE_CHECKING:
    from qafila.chat.llama import Llama

T = TypeVar("T")
_OPTIONS = tuple(field.name for field in fields(Generation) if field.name in Options.__annotations__)


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A request under way, and what makes events of one of its answers' tokens."""

    handle: Handle
    calls: Callable[[], CallStream | None]


class LocalClient:
    """Answers out of an engine in this process.

    Args:
        llama: the model.
        name: what the client is called.
        adapter: the engine's adapter that answers use; None for the one that the model was loaded with, if any.
        pump: drives the engine; by default one of its own, which `close` ends.
        owns_model: whether `close` closes the model too.
    """

    def __init__(
        self,
        llama: Llama,
        name: str,
        *,
        adapter: str | None = None,
        pump: Pump | None = None,
        owns_model: bool = False,
    ) -> None:
        # Scores and embeddings go through the model's own methods, which take the adapter that it was made with.
        self._llama = llama if adapter is None else llama.with_adapter(adapter)
        self._name = name
        self._adapter = llama.adapter if adapter is None else adapter
        self._owns_model = owns_model
        self._own_pump = pump is None
        self._pump = pump or Pump(llama.engine)
        # Rendering and compiling grammars keep no other request waiting; more threads would only share the processors.
        name_prepare = partial(show_thread, "qafila-prepare")
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="qafila-prepare", initializer=name_prepare)

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    @property
    def llama(self) -> Llama:
        """The model behind it."""
        return self._llama

    @property
    def pump(self) -> Pump:
        """What drives the engine: clients of one engine share it."""
        return self._pump

    @property
    def abilities(self) -> Abilities:
        """Everything that its model can do."""
        chats = self._llama.can_chat
        tools = chats and self._llama.format.call_style is not None
        return Abilities(tools=tools, infills=self._infill() is not None)

    @property
    def fingerprint(self) -> str | None:
        """Stands for what computes: equal fingerprints, equal tokens. None where an adapter changes the weights."""
        return None if self._adapter is not None else self._llama.engine.runner.fingerprint

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together: the model's context, or what the KV cache holds if that is less."""
        engine = self._llama.engine
        from qafila.engine.runner import BLOCK_TOKENS

        return min(self._llama.config.context_length, engine.pool.num_blocks * BLOCK_TOKENS)

    async def chat(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Answer a conversation; see `ChatClient.chat`."""
        async with aclosing(self._events(lambda: self._submit_chat(request), request.generation)) as events:
            async for event in events:
                yield event

    async def complete(self, request: PromptRequest) -> AsyncIterator[Event]:
        """Continue a text, or fill the gap before ``suffix``."""
        async with aclosing(self._events(lambda: self._submit_prompt(request), request.generation)) as events:
            async for event in events:
                yield event

    async def score(self, prompt: str | Sequence[int], top: int = 0) -> list[TokenInfo]:
        """The tokens of a text with their log-probabilities (NaN: the first), and the ``top`` likeliest beside each."""
        return await self._prepare(lambda: self._score(prompt, top))

    async def tool_odds(self, request: ChatRequest) -> ToolOdds:
        """How likely the model is to call each of the tools that a request allows."""
        return await self._prepare(lambda: tool_odds(self._llama, request))

    async def embed(self, texts: Sequence[str | Sequence[int]], pooling: Pooling = "mean") -> Embedded:
        """A vector a text."""
        ids = [self._llama.prompt_ids(text) for text in texts]
        vectors = []
        for text in ids:
            vector = await self._prepare(lambda text=text: self._llama.embed(text, pooling=pooling))  # type: ignore[misc]
            vectors.append(tuple(map(float, vector)))
        return Embedded(tuple(vectors), sum(map(len, ids)))

    async def count(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> int:
        """Tokens of the prompt that `chat` would make of a conversation."""
        return len(await self.render(messages, tools))

    async def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The prompt that `chat` would make of a conversation."""
        return await self._prepare(lambda: self._llama.format.render(messages, tools=tools).ids)

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text."""
        return await self._prepare(lambda: self._llama.tokenizer.encode(text, special=special, bos=bos))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._llama.tokenizer.decode(ids)

    async def close(self) -> None:
        """Cancel what is under way here, and close the model if it is the client's own."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._own_pump:
            await asyncio.to_thread(self._pump.close)
        if self._owns_model:
            await asyncio.to_thread(self._llama.close)
            # Tokenizer, tables of grammars and the mapped file hang together in cycles; their memory is wanted now.
            await asyncio.to_thread(gc.collect)

    # Making requests. In a thread of the pool.

    def _submit_chat(self, request: ChatRequest) -> _Submitted:
        chat = self._llama.format
        tools = request.tools if request.tool_mode != "none" else ()
        every = (*tools, *request.untold) if request.tool_mode != "none" else ()
        if request.tool_mode == "required" and not every:
            raise ChatError("tool_choice: a call is required, and there are no tools")
        names = _names(request, every)
        rendered = chat.render(request.messages, tools=tools)
        generation, style = request.generation, chat.call_style
        grammar = generation.answer
        calls: Callable[[], CallStream | None] = _no_calls
        if every and style is None:
            raise ChatError(f"tools: format {chat.name} has no tool calls; leave tools out or choose another model")
        if every and style is not None and names is not None and not names and grammar is None:
            grammar = GrammarSpec("lark", words_grammar())
        elif every and style is not None and (names is None or names):
            text = call_grammar(
                [request.narrowed.get(tool.name, tool) for tool in every],
                style,
                choice="required" if request.tool_mode == "required" else "auto",
                names=names,
                parallel=request.parallel_tool_calls,
                answer=_answer_schema(grammar),
                begin=chat.call_token,
            )
            grammar = GrammarSpec("lark", text)
            calls = partial(CallStream, style, call_id=_call_id)
        stops = tuple(dict.fromkeys((*chat.stop_ids, *self._llama.checkpoint.generation.stop_ids)))
        handle = self._submit(rendered.ids, generation, stops, chat.stop_strings, grammar, continues=False)
        return _Submitted(handle, calls)

    def _submit_prompt(self, request: PromptRequest) -> _Submitted:
        llama, generation = self._llama, request.generation
        stops = tuple(llama.checkpoint.generation.stop_ids)
        if request.suffix is not None:
            gap = self._infill()
            if gap is None:
                raise ChatError("suffix: the model has no infill tokens; leave it out")
            if not isinstance(request.prompt, str):
                raise ChatError("suffix: it goes with a prompt that is text")
            ids, stops, continues = gap.infill(request.prompt, request.suffix), (*gap.stop_ids, *stops), True
        else:
            ids = llama.prompt_ids(request.prompt)
            if not ids and llama.tokenizer.bos_id is not None:
                ids = [llama.tokenizer.bos_id]  # nothing to continue: begin a text
            specials = set(llama.tokenizer.special_tokens.values())
            continues = any(i not in specials for i in ids)
        return _Submitted(self._submit(ids, generation, stops, (), generation.answer, continues=continues), _no_calls)

    def _submit(
        self,
        ids: Sequence[int],
        generation: Generation,
        stop_ids: Sequence[int],
        stop_strings: Sequence[str],
        grammar: GrammarSpec | None,
        *,
        continues: bool,
    ) -> Handle:
        llama = self._llama
        options: Any = {name: getattr(generation, name) for name in _OPTIONS}
        return llama.engine.submit(
            Request(
                prompt_ids=tuple(ids),
                params=opt.sampling(options, llama.checkpoint.generation),
                max_tokens=generation.max_tokens,
                stop_ids=frozenset(stop_ids),
                stop_strings=(*stop_strings, *generation.stop),
                text_stream=lambda: llama.text_stream(continues=continues),
                seed=secrets.randbits(32) if generation.seed is None else generation.seed,
                n=generation.n,
                top_logprobs=generation.logprobs or 0,
                grammar=grammar,
                priority=generation.priority,
                adapter=self._adapter,
                tenant=generation.tenant,
            )
        )

    def _infill(self) -> Any:
        from qafila.text.formats import CodeLlamaInfill

        try:
            return CodeLlamaInfill(self._llama.tokenizer)
        except ChatError:
            return None

    def _score(self, prompt: str | Sequence[int], top: int) -> list[TokenInfo]:
        from qafila.engine.score import Scored, score_beside

        tokenizer = self._llama.tokenizer
        ids = self._llama.prompt_ids(prompt)
        scored = score_beside(self._llama.engine, ids, top, adapter=self._adapter) if len(ids) > 1 else []
        return [
            describe(Token(i, one.logprob, top=one.top), tokenizer)
            for i, one in zip(ids, (Scored(math.nan), *scored), strict=True)
        ]

    # Running them. In the event loop.

    async def _prepare(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _events(self, submit: Callable[[], _Submitted], generation: Generation) -> AsyncGenerator[Event, None]:
        started = time.perf_counter()
        future: Future[_Submitted] = self._pool.submit(submit)
        try:
            submitted = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # It may be submitted all the same, by now or in a moment.
            future.add_done_callback(_drop)
            raise
        handle = submitted.handle
        try:
            yield Started(len(handle.request.prompt_ids))
            answers = [
                Answer(i, self._llama.tokenizer, calls=submitted.calls(), logprobs=generation.logprobs is not None)
                for i in range(generation.n)
            ]
            subscription = self._pump.watch(handle)
            first, unfinished = 0.0, generation.n
            while tokens := await subscription.take():
                first = first or time.perf_counter()
                for token in tokens:
                    number = token.answer
                    unfinished -= token.finish_reason is not None
                    for event in answers[number].push(token, lambda number=number: handle.stop_strings[number]):  # type: ignore[misc]
                        yield event
            if unfinished:
                raise ModelClosedError(f"{self._name}: the model was closed before the answer was complete")
            usage = handle.usage
            now = time.perf_counter()
            yield Usage(usage.prompt, usage.cached, usage.generated, (first or now) - started, now - started)
        finally:
            if not handle.finished:
                handle.cancel()


def _drop(future: Future[_Submitted]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().handle.cancel()


def _no_calls() -> None:
    return None


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _names(request: ChatRequest, tools: Sequence[ToolSchema]) -> frozenset[str] | None:
    known = {tool.name for tool in tools}
    unknown = sorted((request.tool_names or frozenset()) - known) if tools else []
    if unknown:
        raise ChatError(f"tool_choice: there is no tool {unknown[0]!r:.80} among tools")
    return request.tool_names


def _answer_schema(grammar: GrammarSpec | None) -> str | None:
    """What an answer that is no call must match, as a JSON schema."""
    if grammar is None:
        return None
    if grammar.kind == "json_object":
        return '{"type": "object"}'
    if grammar.kind == "json_schema":
        return grammar.text
    raise ChatError(f"tools and a {grammar.kind} grammar do not go together; give one of them")
