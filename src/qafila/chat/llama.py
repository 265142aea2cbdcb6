"""`Llama`: a loaded model one can talk to from Python, in a few lines.

from qafila import Llama

llama = Llama.load("default")
for piece in llama.chat([{"role": "user", "content": "Name three colours."}], stream=True):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt

from qafila.chat.completion import Completion, Run, Stream
from qafila.config import ModelConfig
from qafila.errors import ChatError, ContextLengthError, UsageError
from qafila.sampling import SamplingParams
from qafila.text.chat_format import ChatFormat
from qafila.text.formats import CodeLlamaInfill, chat_format, detect_format
from qafila.text.messages import Message, ToolSchema
from qafila.text.tokenizer import StreamDecoder, Tokenizer
from qafila.weights.hub import resolve
from qafila.weights.load import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from qafila.model.cache import KVCache
    from qafila.model.llama import LlamaModel

# Llama 2's reference chat (facebookresearch/llama, example_chat_completion.py); used where a checkpoint states nothing.
DEFAULT_TEMPERATURE = 0.6
DEFAULT_TOP_P = 0.9


class Options(TypedDict, total=False):
    """How to generate. What is left out (or None) follows the checkpoint, then temperature 0.6 and top-p 0.9.

    ``max_tokens``: most tokens to generate (default: up to the context's end). ``stop``: a string, or several, that end
    the answer. ``seed``: of the random numbers (default: a fresh one). The rest is `qafila.sampling.SamplingParams`.
    """

    max_tokens: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None


class Llama:
    """A model, its tokenizer and its chat format, ready to answer.

    Not safe for use by several threads at once: it keeps the KV cache of the last call, so that a conversation that
    goes on computes only its new tokens.
    """

    def __init__(self, checkpoint: Checkpoint, model: LlamaModel, format: ChatFormat | None = None) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self._format = format
        self._cache: KVCache | None = None
        self._cached_ids: list[int] = []

    @classmethod
    def load(
        cls,
        source: str | Path = "default",
        *,
        format: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Llama:
        """Load a model.

        Args:
            source: ``default``, ``hf:owner/name``, a path, or the name of a pulled model.
            format: a chat format by name; by default the checkpoint's own.
            device: a torch device; by default CUDA where there is one, else the CPU.
            dtype: ``float32``, ``bfloat16`` or ``float16``; by default bfloat16 on CUDA and float32 on the CPU.

        Raises:
            QafilaError: the model is not there, damaged, or too large for the memory.
        """
        from qafila.chat.placement import load_model_on

        checkpoint = open_checkpoint(resolve(str(source)))
        named = chat_format(format, checkpoint.tokenizer) if format is not None else None
        return cls(checkpoint, load_model_on(checkpoint, device, dtype), named)

    @property
    def config(self) -> ModelConfig:
        """Shape and arithmetic of the model."""
        return self.checkpoint.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def format(self) -> ChatFormat:
        """The chat format: the named one, or the checkpoint's own.

        Raises:
            ChatError: the checkpoint has no chat format and none was named.
        """
        if self._format is None:
            self._format = detect_format(self.checkpoint.chat_template, self.tokenizer)
        return self._format

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat format to talk in; without one, `complete` still works."""
        if self.checkpoint.chat_template is not None:
            return True  # one that is damaged is for `chat` to report, not a reason to fall silent about it
        try:
            return self.format is not None
        except ChatError:
            return False

    @overload
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        tools: Sequence[ToolSchema | Mapping[str, Any]] = (),
        **options: Unpack[Options],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        stream: Literal[True],
        tools: Sequence[ToolSchema | Mapping[str, Any]] = (),
        **options: Unpack[Options],
    ) -> Stream: ...
    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Sequence[ToolSchema | Mapping[str, Any]] = (),
        **options: Unpack[Options],
    ) -> Completion | Stream:
        """Answer a conversation.

        Args:
            messages: in order, as `Message` or as OpenAI's dicts; an answer of an earlier turn keeps its ids when its
                ``completion.message`` is passed on.
            stream: give a `Stream` of text pieces instead of the whole `Completion`.
            tools: functions the model may call, as `ToolSchema` or OpenAI's dicts.
            options: see `Options`.

        Raises:
            ChatError: the format cannot express the messages. ContextLengthError: they do not fit the context.
            UsageError: an option that makes no sense.
        """
        parsed = tuple(
            m if isinstance(m, Message) else Message.from_dict(m, f"messages[{i}]") for i, m in enumerate(messages)
        )
        schemas = tuple(
            t if isinstance(t, ToolSchema) else ToolSchema.from_dict(t, f"tools[{i}]") for i, t in enumerate(tools)
        )
        chat = self.format
        rendered = chat.render(parsed, tools=schemas)
        stops = tuple(dict.fromkeys((*chat.stop_ids, *self.checkpoint.generation.stop_ids)))
        run = self._generate(rendered.ids, stops, chat.stop_strings, options, parse=chat.parse)
        return run if stream else run.result

    @overload
    def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> Completion: ...
    @overload
    def complete(self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Unpack[Options]) -> Stream: ...
    def complete(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Unpack[Options]
    ) -> Completion | Stream:
        """Continue a text (or token ids, taken as they are), outside any chat format.

        A text gets the BOS its checkpoint asks for; text that looks like a special token is plain text.

        Raises:
            ContextLengthError: the prompt does not fit the context. UsageError: an option that makes no sense.
        """
        ids = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]  # nothing to continue: begin a text
        specials = set(self.tokenizer.special_tokens.values())
        text = self._text_stream(continues=any(i not in specials for i in ids))
        run = self._generate(ids, self.checkpoint.generation.stop_ids, (), options, text=text)
        return run if stream else run.result

    def infill(self, prefix: str, suffix: str, *, spm: bool = False, **options: Unpack[Options]) -> Completion:
        """Write what stands between ``prefix`` and ``suffix`` (Code Llama, and models with its infill tokens).

        Args:
            prefix: text before the gap. suffix: text after it.
            spm: suffix-prefix-middle order instead of prefix-suffix-middle.
            options: see `Options`.

        Raises:
            ChatError: the model has no infill tokens.
        """
        gap = CodeLlamaInfill(self.tokenizer)
        stops = tuple(dict.fromkeys((*gap.stop_ids, *self.checkpoint.generation.stop_ids)))
        ids = gap.infill(prefix, suffix, spm=spm)
        return self._generate(ids, stops, (), options, text=self._text_stream(continues=True)).result

    def logits(self, prompt: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each token of a text or of token ids: float32 ``[T, V]``, row t predicting token t + 1.

        Raises:
            ContextLengthError: the prompt does not fit the context. UsageError: an id that is no token.
        """
        import torch

        from qafila.generation import check_ids
        from qafila.model.out_of_memory import memory_told

        ids = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)
        if not 0 < len(ids) <= self.config.context_length:
            raise ContextLengthError(f"{len(ids)} tokens; the context holds 1 to {self.config.context_length}")
        check_ids(ids, self.config.vocab_size + self.config.extra_embeddings)
        with torch.inference_mode(), memory_told(f"the logits of {len(ids)} tokens"):
            result: npt.NDArray[np.float32] = self.model(torch.tensor([ids], device=self.model.device))[0].cpu().numpy()
        return result

    def _sampling(self, options: Options) -> SamplingParams:
        stated = self.checkpoint.generation
        defaults = {
            "temperature": stated.temperature if stated.temperature is not None else DEFAULT_TEMPERATURE,
            "top_p": stated.top_p if stated.top_p is not None else DEFAULT_TOP_P,
            "top_k": stated.top_k,
            "min_p": stated.min_p,
            "repetition_penalty": stated.repetition_penalty,
        }
        chosen = {key: options.get(key) for key in defaults}
        values = {key: defaults[key] if chosen[key] is None else chosen[key] for key in defaults}
        return SamplingParams(**{key: value for key, value in values.items() if value is not None})  # type: ignore[arg-type]

    def _text_stream(self, *, continues: bool) -> StreamDecoder:
        """A decoder for an answer; one that ``continues`` a text keeps the space that SentencePiece drops in front.

        Meta's reference does it so for infilling too (``Tokenizer.decode_infilling``): a character goes before.
        """
        stream = self.tokenizer.stream()
        if continues:
            for token in self.tokenizer.encode_continuation("a"):
                stream.push(token)
        return stream

    def _generate(
        self,
        prompt_ids: Sequence[int],
        stop_ids: Sequence[int],
        stop_strings: Sequence[str],
        options: Options,
        parse: Callable[[Sequence[int]], Message] | None = None,
        text: StreamDecoder | None = None,
    ) -> Stream:
        from qafila.model.generate import generate

        unknown = sorted(set(options) - set(Options.__annotations__))
        if unknown:
            raise UsageError(f"unknown option {unknown[0]!r} (there are {', '.join(Options.__annotations__)})")
        stop = options.get("stop") or ()
        if not isinstance(stop, str | Sequence):
            raise UsageError(f"stop must be a string or a list of strings, not {stop!r:.40}")
        seed = options.get("seed")
        if seed is None:
            seed = secrets.randbits(32)
        run = Run(tuple(prompt_ids), seed, parse)
        begin = partial(
            generate,
            self.model,
            prompt_ids,
            params=self._sampling(options),
            max_tokens=options.get("max_tokens"),
            stop_ids=stop_ids,
            stop_strings=(*stop_strings, *((stop,) if isinstance(stop, str) else stop)),
            text_stream=text or self.tokenizer.stream(),
            seed=seed,
        )
        begin(cache=self.model.new_cache(capacity=1))  # refuses what makes no sense now, not at the first piece

        def pieces() -> Iterator[str]:
            run.started = time.perf_counter()
            cache = self._take_cache(prompt_ids)
            try:
                for token in begin(cache=cache):
                    run.take(token)
                    if token.text:
                        yield token.text
            finally:
                run.ended = time.perf_counter()
                self._cache, self._cached_ids = cache, [*run.prompt_ids, *run.ids][: cache.length]

        return Stream(pieces(), run.completion)

    def _take_cache(self, prompt_ids: Sequence[int]) -> KVCache:
        """The KV cache, cut to what it shares with the prompt. It comes back when the stream ends.

        A stream that begins while another is under way gets a fresh one: each owns what it writes to.
        """
        cache, cached_ids = self._cache, self._cached_ids
        self._cache, self._cached_ids = None, []
        if cache is None:
            return self.model.new_cache()
        shared = next((at for at, (a, b) in enumerate(zip(cached_ids, prompt_ids, strict=False)) if a != b), None)
        if shared is None:
            shared = min(len(cached_ids), len(prompt_ids))
        cache.truncate(min(shared, cache.length))
        return cache
