"""`Llama`: a loaded model one can talk to from Python, in a few lines.

from qafila import Llama

llama = Llama.load("default")
for piece in llama.chat([{"role": "user", "content": "Name three colours."}], stream=True):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt

from qafila.chat import options as opt
from qafila.chat.completion import Completion, Run, Score, Stream
from qafila.chat.options import Options
from qafila.config import ModelConfig
from qafila.engine.engine import Engine
from qafila.engine.request import Request
from qafila.errors import ChatError, UsageError
from qafila.text.chat_format import ChatFormat
from qafila.text.formats import CodeLlamaInfill, chat_format, detect_format
from qafila.text.messages import Message, ToolSchema
from qafila.text.tokenizer import StreamDecoder, Tokenizer
from qafila.weights.adapter_model import open_for_engine
from qafila.weights.hub import resolve
from qafila.weights.load import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from qafila.engine.score import Likelihood

__all__ = ["Llama", "Options"]


class Llama:
    """A model, its tokenizer and its chat format, ready to answer.

    Several threads may use one at once: their requests are computed together, with the tokens each would have had
    alone. A conversation that goes on computes only its new tokens, whoever else talked meanwhile.

    Args:
        checkpoint: the opened model. engine: what computes it; `close` closes it.
        format: a chat format; by default the checkpoint's own.
        adapter: name of the engine's adapter that requests use which name none.
    """

    def __init__(
        self, checkpoint: Checkpoint, engine: Engine, format: ChatFormat | None = None, adapter: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.engine = engine
        self._format = format
        self._adapter = adapter

    @classmethod
    def load(
        cls,
        source: str | Path = "default",
        *,
        format: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        kv_type: str | None = None,
        isa: str | None = None,
        adapter: str | Path | Mapping[str, str | Path] | None = None,
        draft: str | Path | None = None,
    ) -> Llama:
        """Load a model.

        Args:
            source: ``default``, ``hf:owner/name``, a path (a run's folder too: an adapter finds its base), or the name
                of a pulled model.
            format: a chat format by name; by default the checkpoint's own.
            device: a torch device, to compute with torch instead of the native CPU engine.
            dtype: of torch: ``float32``, ``bfloat16`` or ``float16``; by default bfloat16 on CUDA, float32 on the CPU.
            threads: of the native engine; by default one a physical core that this process may use.
            context: tokens that the KV cache holds, for all conversations together; by default two conversations of the
                model's context or of 8,192 tokens, or what fits half of the free memory.
            kv_type: of the native engine's KV cache: ``f16`` (the default) or ``int8``.
            isa: instruction set of the native engine: ``portable``, ``avx2``, ``avxvnni`` or ``avx512``.
            adapter: a LoRA adapter's folder (PEFT), which answers then use; or several by name, to be chosen with the
                option ``adapter`` of each call.
            draft: a smaller model of the same vocabulary that guesses ahead; answers are what they are without it.

        Raises:
            QafilaError: the model is not there, damaged, or too large for the memory, or an option makes no sense.
        """
        from qafila.chat.placement import make_engine

        path = resolve(str(source))
        checkpoint, own = open_for_engine(path, merge_adapter=device is not None or adapter is not None)
        named = chat_format(format, checkpoint.tokenizer) if format is not None else None
        smaller = open_checkpoint(resolve(str(draft))) if draft is not None else None
        engine = make_engine(
            checkpoint,
            device=device,
            dtype=dtype,
            threads=threads,
            context=context,
            kv_type=kv_type,
            isa=isa,
            draft=smaller,
        )
        if own is not None:
            adapter = own
        adapters = adapter if isinstance(adapter, Mapping) else {} if adapter is None else {"default": adapter}
        try:
            for name, folder in adapters.items():
                engine.add_adapter(name, Path(folder))
        except BaseException:
            engine.close()
            raise
        return cls(checkpoint, engine, named, None if isinstance(adapter, Mapping) or adapter is None else "default")

    def with_adapter(self, name: str) -> Llama:
        """The same model on the same engine, with an adapter of the engine's for all that names none."""
        return Llama(self.checkpoint, self.engine, self._format, name)

    def close(self) -> None:
        """Cancel what is under way and free the model; a second time does nothing."""
        self.engine.close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def config(self) -> ModelConfig:
        """Shape and arithmetic of the model."""
        return self.checkpoint.config

    @property
    def adapter(self) -> str | None:
        """Name of the engine's adapter that answers use which name none; None for the weights as they are."""
        return self._adapter

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
        ids = self.prompt_ids(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]  # nothing to continue: begin a text
        specials = set(self.tokenizer.special_tokens.values())
        continues = any(i not in specials for i in ids)
        run = self._generate(ids, self.checkpoint.generation.stop_ids, (), options, continues=continues)
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
        return self._generate(ids, stops, (), options, continues=True).result

    def logits(self, prompt: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each token of a text or of token ids: float32 ``[T, V]``, row t predicting token t + 1.

        Raises:
            ContextLengthError: the prompt does not fit the context. UsageError: an id that is no token.
        """
        from qafila.engine import score as scoring

        return scoring.logits(self.engine, self.prompt_ids(prompt), adapter=self._adapter)

    def score(self, text: str | Sequence[int]) -> Score:
        """How likely a text is: the log-probability of each of its tokens, given those before it.

        A text gets the BOS its checkpoint asks for, which then is the first token and has no probability itself.

        Raises:
            ContextLengthError: the text does not fit the context.
            UsageError: fewer than two tokens, or an id that is no token.
        """
        from qafila.engine import score as scoring

        ids = self.prompt_ids(text)
        return Score(tuple(ids), tuple(scoring.score(self.engine, ids, adapter=self._adapter)))

    def likelihood(self, prompt: str | Sequence[int], continuations: Sequence[Sequence[int] | str]) -> list[Likelihood]:
        """How likely each of a set of texts is to follow a prompt: exact, and as shares of the whole set.

        Args:
            prompt: text (which gets the BOS its checkpoint asks for) or token ids, at least one token.
            continuations: texts, each tokenised on its own behind the prompt, or token ids.

        Raises:
            ContextLengthError: a text does not fit the context.
            UsageError: no prompt, nothing to compare, a continuation that is empty or there twice.
        """
        if isinstance(continuations, str):
            raise UsageError("continuations must be a list of texts, not one text")
        from qafila.engine import score as scoring

        return scoring.likelihood(
            self.engine, self.prompt_ids(prompt), continuations, tokenizer=self.tokenizer, adapter=self._adapter
        )

    def embed(self, text: str | Sequence[int], *, pooling: Literal["mean", "last"] = "mean") -> npt.NDArray[np.float32]:
        """A vector ``[D]`` of length one for a text: its tokens' last hidden states, their mean or the last of them.

        Args:
            text: text (which gets the BOS its checkpoint asks for) or token ids.
            pooling: ``mean`` or ``last``.

        Raises:
            ContextLengthError: the text does not fit the context. UsageError: an option that makes no sense.
        """
        from qafila.engine import score as scoring

        return scoring.embed(self.engine, self.prompt_ids(text), pooling=pooling, adapter=self._adapter)

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids of a text, with the BOS that the checkpoint asks for; ids as they are."""
        return self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)

    def text_stream(self, *, continues: bool) -> StreamDecoder:
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
        continues: bool = False,
    ) -> Stream:
        opt.check_names(options)
        adapter, seed = options.get("adapter"), options.get("seed")
        handle = self.engine.submit(
            Request(
                prompt_ids=tuple(prompt_ids),
                params=opt.sampling(options, self.checkpoint.generation),
                max_tokens=options.get("max_tokens"),
                stop_ids=frozenset(stop_ids),
                stop_strings=(*stop_strings, *opt.stop_strings(options)),
                text_stream=lambda: self.text_stream(continues=continues),
                seed=secrets.randbits(32) if seed is None else seed,
                top_logprobs=options.get("top_logprobs") or 0,
                grammar=opt.grammar(options),
                adapter=self._adapter if adapter is None else adapter or None,
            )
        )
        run = Run(handle, tuple(prompt_ids), parse)
        return Stream(run, run.completion)
