"""Which runner computes a model, and its KV cache: the options of `Llama.load`, checked before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from qafila.config import ModelConfig
from qafila.engine.engine import Engine
from qafila.engine.request import GrammarSpec, Request
from qafila.engine.runner import BLOCK_TOKENS, Runner
from qafila.engine.scheduler import Proposer
from qafila.engine.stream import Matcher
from qafila.errors import UsageError
from qafila.machine import this_machine
from qafila.weights.load import Checkpoint

# Without being asked for more, a chat may grow so long, and the cache holds two of that length. Blocks cost memory when
# they are first written.
_DEFAULT_CONTEXT = 8192
_DEFAULT_CHATS = 2


def kv_tokens(config: ModelConfig, context: int | None) -> int:
    """Tokens that the KV cache holds: ``context``, or what a person would expect.

    Raises:
        UsageError: ``context`` is no number of tokens.
    """
    if context is None:
        return _DEFAULT_CHATS * min(config.context_length, _DEFAULT_CONTEXT)
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context < 1 << 40:
        raise UsageError(f"context must be a number of tokens, 1 or more, not {context!r:.40}")
    return -(-context // BLOCK_TOKENS) * BLOCK_TOKENS


def make_engine(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    kv_type: str | None = None,
    isa: str | None = None,
    draft: Checkpoint | None = None,
) -> Engine:
    """An engine over a checkpoint, with grammars over its vocabulary and guesses ahead; options of `qafila.Llama.load`.

    Raises:
        QafilaError: as `make_runner`; or the draft model has another vocabulary.
    """
    if draft is not None and draft.config.vocab_size != checkpoint.config.vocab_size:
        raise UsageError(
            f"draft: {draft.path} has {draft.config.vocab_size} tokens and the model "
            f"{checkpoint.config.vocab_size}; a draft model needs the model's own vocabulary"
        )
    options: dict[str, Any] = {"threads": threads, "kv_type": kv_type, "isa": isa, "device": device, "dtype": dtype}
    runner = make_runner(checkpoint, context=context, **options)
    try:
        small = None if draft is None else make_runner(draft, context=context, **options)
    except BaseException:
        runner.close()
        raise
    return Engine(runner, proposer=_proposer(small), grammar=_grammars(checkpoint))


def _proposer(draft: Runner | None) -> Callable[[Request], Proposer | None]:
    """Guesses by the draft model, or by looking up what came before."""
    from qafila.engine.speculative import DraftModel, PromptLookup, StepCosts

    if draft is not None:
        return DraftModel(draft)
    costs = StepCosts()
    return lambda request: PromptLookup(costs)


def _grammars(checkpoint: Checkpoint) -> Callable[[GrammarSpec], Callable[[], Matcher]]:
    """Compiles grammars over the checkpoint's vocabulary, whose tables are made when the first one comes."""

    @cache
    def compiler() -> Callable[[GrammarSpec], Callable[[], Matcher]]:
        from qafila.engine.grammar import GrammarCompiler

        width = checkpoint.config.vocab_size
        return GrammarCompiler(checkpoint.tokenizer, stop_ids=checkpoint.generation.stop_ids, vocabulary=width)

    return lambda spec: compiler()(spec)


def make_runner(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    kv_type: str | None = None,
    isa: str | None = None,
) -> Runner:
    """The runner of a checkpoint; see `qafila.Llama.load` for the options.

    Raises:
        UsageError: options that make no sense here, or torch is asked for and not installed.
        FormatError: the weights are not those of the configuration. QafilaError: they do not fit the memory.
    """
    if device is None:
        if dtype is not None:
            raise UsageError(
                f"dtype {dtype!r:.40} is for torch: add a device ('cpu', 'cuda'), or leave it out (the native engine "
                "computes with the weights as they are stored)"
            )
        from qafila.engine.native_runner import NativeRunner

        options: dict[str, Any] = {"threads": threads, "kv_type": kv_type, "isa": isa}
        given = {name: value for name, value in options.items() if value is not None}
        return NativeRunner.of(checkpoint, kv_tokens=_affordable(checkpoint, context), **given)
    for name, value in (("threads", threads), ("kv_type", kv_type), ("isa", isa)):
        if value is not None:
            raise UsageError(f"{name} is for the native engine and does not go with device {device!r:.40}")
    from qafila.engine.torch_model import load_model_on

    tokens = kv_tokens(checkpoint.config, context)
    model = load_model_on(checkpoint, device, dtype)
    from qafila.engine.torch_runner import TorchRunner

    return TorchRunner(model, num_blocks=tokens // BLOCK_TOKENS)


def _affordable(checkpoint: Checkpoint, context: int | None) -> int:
    """`kv_tokens`, at most what half of the free memory holds; what is asked for by number is not cut."""
    tokens = kv_tokens(checkpoint.config, context)
    if context is not None:
        return tokens
    each = checkpoint.config.kv_bytes_per_token(2)
    most = this_machine().available // 2 // each // BLOCK_TOKENS * BLOCK_TOKENS if each else tokens
    return min(tokens, max(most, BLOCK_TOKENS))
