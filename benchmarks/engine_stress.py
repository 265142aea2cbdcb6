"""Random requests through a small cache: no leaked block, no changed answer, no deadlock.

    python benchmarks/engine_stress.py [--requests 1000] [--runner native|torch] [--blocks 24] [--seed 0]

Prompts share beginnings; requests differ in length, parameters, seed, number of answers, priority, tenant and grammar;
some are cancelled at some step. Every answer, or what came of it, is compared with the same request computed alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qafila.config import ModelConfig
from qafila.engine.engine import Engine
from qafila.engine.handle import Handle
from qafila.engine.request import GrammarSpec, Request
from qafila.engine.runner import Runner
from qafila.errors import QafilaError
from qafila.sampling import GREEDY, SamplingParams
from qafila.text.tokenizer import Tokenizer

#: Bytes and three special tokens.
VOCABULARY = 259
GRAMMARS = (
    GrammarSpec("regex", "[a-f]{3,9}( [a-z]{1,4}){2,8}"),
    GrammarSpec("json_schema", '{"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}'),
    GrammarSpec("json_object"),
    GrammarSpec("lark", 'start: ("ab" | "cd")+ "."'),
)

#: A step that gets nobody on is a fault of the scheduler; so many in a row are a deadlock.
PATIENCE = 1000


@dataclass
class Outcome:
    """What a run did: how many answers were compared, and how they ended."""

    answers: int = 0
    tokens: int = 0
    cancelled: int = 0
    failed: int = 0


def byte_tokenizer() -> Tokenizer:
    """The tests' own: one token a byte, and special tokens."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "doubles"))
    from byte_tokenizer import CHATML, ByteTokenizer

    return ByteTokenizer(CHATML, eos="<|im_end|>")


def random_requests(
    rng: random.Random, count: int, vocabulary: int, longest: int, *, grammars: bool = True
) -> Iterator[Request]:
    """Requests whose prompts and answers have up to ``longest`` tokens together."""
    beginnings = [[rng.randrange(vocabulary) for _ in range(longest // 2)] for _ in range(4)]
    for _ in range(count):
        shared = rng.choice(beginnings)[: rng.randrange(longest // 2)]
        prompt = shared + [rng.randrange(vocabulary) for _ in range(rng.randrange(1, longest // 4))]
        params = rng.choice(
            [
                GREEDY,
                SamplingParams(temperature=0.8, top_p=0.9),
                SamplingParams(top_k=10, repetition_penalty=1.2),
                SamplingParams(min_p=0.05, presence_penalty=0.3, frequency_penalty=0.2),
            ]
        )
        yield Request(
            prompt,
            params=params,
            max_tokens=rng.randrange(1, longest - len(prompt)),
            stop_ids=frozenset(rng.sample(range(vocabulary), rng.choice([0, 0, 1]))),
            seed=rng.getrandbits(64),
            n=rng.choice([1, 1, 1, 2, 3]),
            sample_index=rng.randrange(3),
            top_logprobs=rng.choice([0, 0, 2]),
            priority=rng.choice([0, 0, 0, 1, 2]),
            tenant=rng.choice(["", "", "a"]),
            grammar=rng.choice(GRAMMARS) if grammars and rng.random() < 0.3 else None,
        )


def stress(
    engine: Engine, requests: list[Request], alone: Callable[[Request], list[tuple[int, float]]], rng: random.Random
) -> Outcome:
    """Send requests and cancellations at random moments, then compare with ``alone``.

    Args:
        engine: idle; it ends idle.
        requests: what to send.
        alone: ids and log-probabilities of a request with one answer, computed without any other.
        rng: when to do what.
    """
    waiting, sent = list(reversed(requests)), list[Handle]()
    idle = 0
    while waiting or not all(handle.finished for handle in sent):
        before = sum(handle.usage.generated for handle in sent)
        while waiting and rng.random() < 0.4:
            sent.append(engine.submit(waiting.pop()))
        if sent and rng.random() < 0.05:
            rng.choice(sent[-8:]).cancel()
        engine.step()
        idle = idle + 1 if sum(handle.usage.generated for handle in sent) == before else 0
        assert idle < PATIENCE, "deadlock: no token in a thousand steps"
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0), f"leaked: {stats}"
    engine.pool.check()
    outcome = Outcome()
    for handle in sent:
        asked, tokens = handle.request, []
        try:
            for token in handle:
                tokens.append(token)
        except QafilaError:
            outcome.failed += 1
        for answer in range(asked.n):
            given = [(token.id, token.logprob) for token in tokens if token.answer == answer]
            expected = alone(replace(asked, n=1, sample_index=asked.sample_index + answer))
            whole = handle.finish_reasons[answer] in ("stop", "length")
            assert given == (expected if whole else expected[: len(given)]), f"answer {answer} changed: {asked}"
            outcome.answers += 1
            outcome.tokens += len(given)
            outcome.cancelled += handle.finish_reasons[answer] == "cancelled"
    return outcome


def _runner(kind: str, blocks: int) -> Runner:
    from qafila.model.random_weights import random_tensors

    config = ModelConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128, vocab_size=VOCABULARY, context_length=512
    )
    tensors = random_tensors(config, 0, scale=1.5)
    if kind == "torch":
        from qafila.engine.torch_runner import TorchRunner
        from qafila.model.load import load_model

        return TorchRunner(load_model(config, tensors), blocks, max_tokens=64, max_rows=16, exact=True)
    from qafila.engine.native_runner import NativeRunner

    return NativeRunner(config, tensors, threads=2, num_blocks=blocks, max_tokens=64, max_rows=16)


def _alone(engine: Engine) -> Callable[[Request], list[tuple[int, float]]]:
    def alone(asked: Request) -> list[tuple[int, float]]:
        engine.pool.clear()
        return [(token.id, token.logprob) for token in engine.submit(asked)]

    return alone


def main() -> None:
    """Run it and print what was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--runner", choices=["native", "torch"], default="native")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    started = time.perf_counter()
    with (
        Engine(_runner(options.runner, options.blocks), tokenizer=byte_tokenizer()) as engine,
        Engine(_runner(options.runner, 32), tokenizer=byte_tokenizer()) as other,
    ):
        requests = list(random_requests(rng, options.requests, VOCABULARY, 16 * options.blocks // 3))
        outcome = stress(engine, requests, _alone(other), rng)
        print(f"{outcome}, {engine.stats()}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
