"""The engine over a runner whose answers show every mistake in its bookkeeping."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import CHATML, ByteTokenizer
from fake_runner import FakeRunner, hashed_logits

from qafila.engine.engine import Engine
from qafila.engine.handle import Handle
from qafila.engine.request import GrammarSpec, Request, Token
from qafila.engine.runner import Step
from qafila.errors import ContextLengthError, QafilaError, UsageError
from qafila.sampling import GREEDY, Occurrences, SamplingParams, sample, uniform

SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)
PROMPT = list(range(1, 21))


def oracle(request: Request, *, answer: int = 0, adapter: int = 0) -> list[int]:
    """One answer, computed alone and from the tokens themselves."""
    ids = list(request.prompt_ids)
    occurrences = Occurrences(ids)
    room = 512 - len(ids)
    out: list[int] = []
    for _ in range(room if request.max_tokens is None else min(request.max_tokens, room)):
        assert request.seed is not None
        number = uniform(request.seed, len(ids), request.sample_index + answer)
        logits = hashed_logits(np.array(ids, np.int64) + 1000 * adapter, 50)
        ids.append(sample(logits, request.params, occurrences, number).id)
        occurrences.add(ids[-1])
        out.append(ids[-1])
        if ids[-1] in request.stop_ids:
            break
    return out


def ids_of(tokens: Sequence[Token], answer: int = 0) -> list[int]:
    return [token.id for token in tokens if token.answer == answer]


def drain(engine: Engine) -> None:
    while engine.step():
        engine.pool.check()


def assert_idle(engine: Engine) -> None:
    engine.pool.check()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert not engine._live
    assert not engine._scheduler._producing


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def engine(runner: FakeRunner) -> Iterator[Engine]:
    with Engine(runner) as engine:
        yield engine
        assert_idle(engine)
    assert runner.closed


def request(prompt: Sequence[int] = PROMPT, **changes: Any) -> Request:
    return Request(prompt, **{"params": SAMPLED, "max_tokens": 40, "seed": 5, **changes})


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, SamplingParams(repetition_penalty=1.3, presence_penalty=0.5)])
def test_one_answer_is_the_oracles(engine: Engine, params: SamplingParams) -> None:
    asked = request(params=params)
    tokens = list(engine.submit(asked))
    assert ids_of(tokens) == oracle(asked)
    assert [token.finish_reason for token in tokens] == [None] * 39 + ["length"]


def test_a_stop_token_ends_the_answer_and_usage_counts(engine: Engine) -> None:
    asked = request()
    stop = oracle(asked)[7]
    asked = replace(asked, stop_ids=frozenset({stop}))
    handle = engine.submit(asked)
    tokens = list(handle)
    assert ids_of(tokens) == oracle(asked)
    assert tokens[-1].finish_reason == "stop"
    assert handle.finish_reasons == ["stop"]
    assert (handle.usage.prompt, handle.usage.cached, handle.usage.generated) == (20, 0, len(tokens))


def test_answers_do_not_depend_on_what_shares_the_batch(engine: Engine) -> None:
    asked = [
        request([i % 50 for i in range(start, start + length)], seed=start, max_tokens=5 + length % 30, n=1 + start % 3)
        for start, length in enumerate((1, 15, 16, 17, 31, 32, 33, 64, 100, 130))
    ]
    handles = [engine.submit(one) for one in asked]
    for one, handle in zip(asked, handles, strict=True):
        tokens = list(handle)
        for answer in range(one.n):
            assert ids_of(tokens, answer) == oracle(one, answer=answer)


def test_answers_of_one_request_share_its_prompt(engine: Engine, runner: FakeRunner) -> None:
    for length in (16, 33, 47):
        asked = request([length, *range(length - 1)], n=3, max_tokens=20)
        before = runner.computed
        tokens = list(engine.submit(asked))
        assert runner.computed - before == length + 3 * 19
        for answer in range(3):
            assert ids_of(tokens, answer) == oracle(asked, answer=answer)
            alone = engine.submit(replace(asked, n=1, sample_index=answer))
            assert ids_of(list(alone)) == ids_of(tokens, answer)


def test_decoding_goes_on_while_a_long_prompt_is_read(engine: Engine, runner: FakeRunner) -> None:
    short = engine.submit(request(max_tokens=12))
    next(short)
    long = engine.submit(request(list(range(50)) * 6, max_tokens=1))
    runner.steps.clear()
    next(long)
    assert runner.steps == [(1, 63), (1, 63), (1, 63), (1, 63), (1, 48)]
    assert ids_of(list(short)) == oracle(short.request)[1:]


def test_a_prefix_is_computed_once(engine: Engine, runner: FakeRunner) -> None:
    first = engine.submit(request(max_tokens=30))
    answer = ids_of(list(first))
    second = request([*PROMPT, *answer, 7, 8, 9], max_tokens=4)
    before = runner.computed
    handle = engine.submit(second)
    assert ids_of(list(handle)) == oracle(second)
    # 53 tokens, of which 49 are in the cache: three full blocks.
    assert handle.usage.cached == 48
    assert runner.computed - before == 53 - 48 + 3
    assert engine.stats().prefix_hit_tokens == 48


def test_equal_prompts_arriving_together_are_read_once(engine: Engine, runner: FakeRunner) -> None:
    prompt = [3] * 150
    asked = [request([*prompt, end], max_tokens=3, seed=end) for end in range(4)]
    handles = [engine.submit(one) for one in asked]
    for one, handle in zip(asked, handles, strict=True):
        assert ids_of(list(handle)) == oracle(one)
    # The second needs 144 tokens that the first computes; 7 are its own, and 2 steps follow.
    assert runner.computed == 151 + 3 * 7 + 4 * 2


def test_tenants_and_adapters_share_nothing(engine: Engine) -> None:
    engine.add_adapter("one", "1")
    for changes in ({"tenant": "a"}, {"tenant": "b"}, {"adapter": "one"}, {"adapter": "one", "tenant": "a"}):
        handle = engine.submit(request(max_tokens=2, **changes))
        assert ids_of(list(handle)) == oracle(handle.request, adapter=1 if "adapter" in changes else 0)
        assert handle.usage.cached == 0
        again = engine.submit(handle.request)
        assert ids_of(list(again)) == oracle(handle.request, adapter=1 if "adapter" in changes else 0)
        assert again.usage.cached == 16


def test_another_adapter_of_the_same_name_finds_nothing_of_the_first(engine: Engine) -> None:
    for number in (1, 2):
        engine.add_adapter("mine", str(number))
        handle = engine.submit(request(adapter="mine"))
        with pytest.raises(UsageError, match="in use"):
            engine.remove_adapter("mine")
        assert ids_of(list(handle)) == oracle(handle.request, adapter=number)
        assert handle.usage.cached == 0
        engine.remove_adapter("mine")
    with pytest.raises(UsageError, match="no adapter 'mine'"):
        engine.submit(request(adapter="mine"))
    engine.add_adapter("mine", "3")
    with pytest.raises(UsageError, match="already"):
        engine.add_adapter("mine", "4")
    with pytest.raises(QafilaError):
        engine.add_adapter("bad", "x")


@pytest.mark.parametrize("blocks", [5, 7, 11])
def test_short_memory_preempts_and_changes_nothing(blocks: int) -> None:
    runner = FakeRunner(blocks)
    with Engine(runner) as engine:
        asked = [request([n] * (n + 1), seed=n, max_tokens=40, n=1 + n % 2) for n in range(12)]
        handles = [engine.submit(one) for one in asked]
        for one, handle in zip(asked, handles, strict=True):
            tokens = list(handle)
            for answer in range(one.n):
                assert ids_of(tokens, answer) == oracle(one, answer=answer)
            engine.pool.check()
        assert engine.stats().preemptions > 0
        assert_idle(engine)


def test_an_answer_may_fill_the_whole_cache() -> None:
    with Engine(FakeRunner(3)) as engine:
        handles = [engine.submit(request(max_tokens=None, seed=seed)) for seed in range(2)]
        for handle in handles:
            tokens = list(handle)
            # The last token is not read any more and needs no room.
            assert len(tokens) == 3 * 16 + 1 - 20
            assert ids_of(tokens) == oracle(handle.request)[: len(tokens)]
        assert_idle(engine)


def test_the_contexts_end_ends_an_answer() -> None:
    with Engine(FakeRunner(context_length=30)) as engine:
        tokens = list(engine.submit(request(max_tokens=None)))
        assert len(tokens) == 10
        assert tokens[-1].finish_reason == "length"


@pytest.mark.parametrize("steps", range(8))
def test_cancelling_after_any_step_leaks_nothing(steps: int) -> None:
    with Engine(FakeRunner(16)) as engine:
        other = engine.submit(request([9] * 40, seed=1))
        doomed = engine.submit(request([8] * 130, n=3))
        waiting = engine.submit(request([7] * 100, seed=2))
        for _ in range(steps):
            engine.step()
        doomed.cancel()
        doomed.cancel()
        tokens = list(doomed)
        assert doomed.finished
        assert doomed.finish_reasons == ["cancelled"] * 3
        for answer in range(3):
            given = ids_of(tokens, answer)
            assert given == oracle(doomed.request, answer=answer)[: len(given)]
        for handle in (other, waiting):
            assert ids_of(list(handle)) == oracle(handle.request)
        assert_idle(engine)


def test_leaving_a_with_block_cancels(engine: Engine) -> None:
    with engine.submit(request()) as handle:
        next(handle)
    assert handle.finish_reasons == ["cancelled"]


def test_higher_priority_goes_first_and_drives_out_lower() -> None:
    with Engine(FakeRunner(8), max_running=2) as engine:
        low = [engine.submit(request([n] * 40, seed=n, max_tokens=30)) for n in range(3)]
        for _ in range(4):
            engine.step()
        high = engine.submit(request([40] * 40, priority=1, max_tokens=30))
        assert ids_of(list(high)) == oracle(high.request)
        assert not any(handle.finished for handle in low)
        assert engine.stats().preemptions > 0
        order = []
        while not all(handle.finished for handle in low):
            engine.step()
            order += [n for n, handle in enumerate(low) if handle.finished and n not in order]
        assert order == [0, 1, 2]
        for handle in low:
            assert ids_of(list(handle)) == oracle(handle.request)
        assert_idle(engine)


def test_a_runner_failure_fails_its_batch_and_no_other(engine: Engine, runner: FakeRunner) -> None:
    def explode(step: Step) -> None:
        raise RuntimeError("lightning\nstruck")

    kept = engine.submit(request())
    assert ids_of(list(kept)) == oracle(kept.request)
    hit = [engine.submit(request(seed=seed, n=2)) for seed in range(3)]
    engine.step()
    runner.before = explode
    engine.step()
    runner.before = lambda step: None
    for handle in hit:
        with pytest.raises(QafilaError, match=r"failed.*RuntimeError: lightning\); submit"):
            list(handle)
        assert handle.finish_reasons == ["error", "error"]
    assert_idle(engine)
    after = engine.submit(request())
    assert ids_of(list(after)) == oracle(after.request)


def test_damaged_logits_fail_the_one_request_they_belong_to(engine: Engine, runner: FakeRunner) -> None:
    plain = runner.logits

    def damaged(step: Step) -> np.ndarray:
        out = plain(step)
        for row, token in enumerate(step.wanted):
            if step.token_ids[token] == 49:
                out[row] = np.nan
        return out

    runner.logits = damaged  # type: ignore[method-assign]
    bad = engine.submit(request([1, 49], n=3))
    good = engine.submit(request([1, 2], stop_ids=frozenset({49})))
    with pytest.raises(QafilaError, match="no usable logits"):
        next(bad)
    assert ids_of(list(good)) == oracle(good.request)


def test_ctrl_c_in_a_step_loses_nothing(engine: Engine, runner: FakeRunner) -> None:
    def interrupt(step: Step) -> None:
        runner.before = lambda step: None
        raise KeyboardInterrupt

    handle = engine.submit(request())
    tokens = [next(handle)]
    runner.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        next(handle)
    tokens += handle
    assert ids_of(tokens) == oracle(handle.request)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prompt_ids": []}, UsageError, "no tokens"),
        ({"prompt_ids": [50]}, UsageError, "token 50"),
        ({"prompt_ids": [1.0]}, UsageError, "token 1.0"),
        ({"prompt_ids": [1] * 512}, ContextLengthError, "context holds 512"),
        ({"prompt_ids": [1] * 300}, ContextLengthError, "KV cache holds 256"),
        ({"params": None}, UsageError, "SamplingParams"),
        ({"params": SamplingParams(logit_bias={50: 1.0})}, UsageError, "token 50"),
        ({"max_tokens": 0}, UsageError, "max_tokens"),
        ({"max_tokens": 1.5}, UsageError, "max_tokens"),
        ({"stop_ids": frozenset({"a"})}, UsageError, "stop_ids"),
        ({"stop_strings": ("x",)}, UsageError, "tokenizer"),
        ({"stop_strings": "x"}, UsageError, "list of strings"),
        ({"n": 0}, UsageError, "n must"),
        ({"n": 129}, UsageError, "between 1 and 128"),
        ({"n": True}, UsageError, "n must"),
        ({"sample_index": -1}, UsageError, "sample_index"),
        ({"seed": -1}, UsageError, "seed"),
        ({"seed": 1 << 64}, UsageError, "seed"),
        ({"top_logprobs": 21}, UsageError, "top_logprobs"),
        ({"priority": 0.5}, UsageError, "priority"),
        ({"tenant": None}, UsageError, "tenant"),
        ({"adapter": "a"}, UsageError, "no adapter 'a'"),
        ({"adapter": ["a"]}, UsageError, "no adapter"),
        ({"grammar": "{}"}, UsageError, "GrammarSpec"),
        ({"grammar": GrammarSpec("regex", "a")}, UsageError, "tokenizer"),
    ],
)
def test_what_can_never_work_is_refused_at_once(changes: dict[str, Any], error: type[QafilaError], words: str) -> None:
    with Engine(FakeRunner(16)) as engine:
        running = engine.submit(request())
        next(running)
        with pytest.raises(error, match=words):
            engine.submit(replace(request(), **changes))
        assert ids_of(list(running)) == oracle(running.request)[1:]
        assert_idle(engine)


def test_a_fresh_seed_is_told_and_gives_the_same_again(engine: Engine) -> None:
    first = engine.submit(request(seed=None))
    tokens = list(first)
    assert ids_of(tokens) == oracle(request(seed=first.seed))


def test_top_logprobs_come_likeliest_first(engine: Engine) -> None:
    token = next(engine.submit(request(top_logprobs=3, params=GREEDY, max_tokens=1)))
    assert token.top[0] == (token.id, token.logprob)
    assert [logprob for _, logprob in token.top] == sorted((logprob for _, logprob in token.top), reverse=True)


class Letters:
    """Ids as letters, one behind."""

    def __init__(self) -> None:
        self.last = ""

    def push(self, token_id: int) -> str:
        if token_id == 13:
            raise ValueError("bad luck")
        text, self.last = self.last, chr(ord("A") + token_id)
        return text

    def finish(self) -> str:
        text, self.last = self.last, ""
        return text


def test_text_and_stop_strings(engine: Engine) -> None:
    asked = next(one for one in (request(seed=seed) for seed in range(99)) if 13 not in oracle(one))
    letters = "".join(chr(ord("A") + id) for id in oracle(asked))
    tokens = list(engine.submit(replace(asked, text_stream=Letters)))
    assert "".join(token.text for token in tokens) == letters
    stopping = engine.submit(replace(asked, text_stream=Letters, stop_strings=(letters[10:12],)))
    tokens = list(stopping)
    assert "".join(token.text for token in tokens) == letters[: letters.index(letters[10:12])]
    assert stopping.finish_reasons == ["stop_string"]


def test_a_failing_text_stream_fails_its_request_alone(engine: Engine) -> None:
    asked = next(one for one in (request(seed=seed) for seed in range(99)) if 13 in oracle(one))
    bad, good = engine.submit(replace(asked, text_stream=Letters)), engine.submit(request())
    with pytest.raises(QafilaError, match="bad luck"):
        list(bad)
    assert ids_of(list(good)) == oracle(good.request)


class Guesser:
    """Guesses from the oracle's answer, wrong every so often."""

    def __init__(self, asked: Request) -> None:
        self.right = [*asked.prompt_ids, *oracle(asked)]
        self.log: list[tuple[int, int]] = []

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        assert list(ids) == self.right[: len(ids)]
        guesses = self.right[len(ids) : len(ids) + len(ids) % 7][:most]
        if len(ids) % 3 == 0 and guesses:
            guesses[-1] = (guesses[-1] + 1) % 50
        return guesses

    def feedback(self, accepted: int, proposed: int) -> None:
        assert 0 <= accepted <= proposed
        self.log.append((accepted, proposed))


@pytest.mark.parametrize("blocks", [6, 64])
def test_guesses_change_no_token(blocks: int) -> None:
    runner = FakeRunner(blocks)
    guessers = []

    def proposer(asked: Request) -> Guesser:
        guessers.append(Guesser(asked))
        return guessers[-1]

    with Engine(runner, proposer=proposer) as engine:
        params = SamplingParams(repetition_penalty=1.2)
        asked = [request([n] * (n + 9), seed=n, params=params, max_tokens=50) for n in range(5)]
        stop = oracle(asked[2])[20]
        asked[2] = replace(asked[2], stop_ids=frozenset({stop}))
        asked[4] = replace(asked[4], speculate=False)
        handles = [engine.submit(one) for one in asked]
        for handle in handles:
            assert ids_of(list(handle)) == oracle(handle.request)
            engine.pool.check()
        assert len(guessers) == 4
        assert any(accepted for guesser in guessers for accepted, _ in guesser.log)
        assert any(accepted < proposed for guesser in guessers for accepted, proposed in guesser.log)
        # A prefix that was partly guessed is in the cache as it was accepted.
        again = request([*asked[1].prompt_ids, *oracle(asked[1])], max_tokens=20)
        assert ids_of(list(engine.submit(replace(again, speculate=False)))) == oracle(again)
        assert_idle(engine)


def test_a_proposer_that_fails_is_done_without() -> None:
    class Broken:
        def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
            raise RuntimeError("no draft today")

        def feedback(self, accepted: int, proposed: int) -> None:
            raise AssertionError

    with Engine(FakeRunner(), proposer=lambda asked: Broken()) as engine:
        handle = engine.submit(request())
        assert ids_of(list(handle)) == oracle(handle.request)
        assert_idle(engine)


class EvenOnly:
    """A grammar: even ids, and complete after six of them."""

    def __init__(self) -> None:
        self.count = self.asked = 0

    def ask(self) -> None:
        self.asked += 1

    def mask(self) -> np.ndarray:
        return np.array([0x55555555, 0x55555555], np.uint32)

    def accept(self, token_id: int) -> bool:
        assert token_id % 2 == 0
        self.count += 1
        return self.count == 6


def test_a_grammar_masks_and_ends_the_answer() -> None:
    made = []

    def compile(spec: GrammarSpec) -> Any:
        if spec.text == "bad":
            raise UsageError("grammar: it is bad")

        def matcher() -> EvenOnly:
            made.append(EvenOnly())
            return made[-1]

        return matcher

    with Engine(FakeRunner(), grammar=compile) as engine:
        with pytest.raises(UsageError, match="it is bad"):
            engine.submit(request(grammar=GrammarSpec("regex", "bad")))
        handle = engine.submit(request(grammar=GrammarSpec("regex", "x"), n=2))
        tokens = list(handle)
        assert handle.finish_reasons == ["stop", "stop"]
        assert [len(ids_of(tokens, answer)) for answer in range(2)] == [6, 6]
        assert all(token.id % 2 == 0 for token in tokens)
        assert_idle(engine)


def test_a_grammar_that_gets_stuck_fails_its_request_alone() -> None:
    class Stuck(EvenOnly):
        def mask(self) -> np.ndarray:
            if self.count == 3:
                raise QafilaError("the grammar is too complex")
            return super().mask()

    with Engine(FakeRunner(), grammar=lambda spec: Stuck) as engine:
        stuck = engine.submit(request(grammar=GrammarSpec("regex", "x"), n=2))
        fine = engine.submit(request())
        with pytest.raises(QafilaError, match="too complex"):
            list(stuck)
        assert stuck.usage.generated == 6
        assert ids_of(list(fine)) == oracle(fine.request)
        assert_idle(engine)


def test_an_answer_follows_its_schema() -> None:
    tokenizer = ByteTokenizer(CHATML, eos="<|im_end|>")
    spec = GrammarSpec("json_schema", '{"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}')
    with Engine(FakeRunner(vocab_size=tokenizer.vocab_size), tokenizer=tokenizer) as engine:
        for seed in range(3):
            handle = engine.submit(request(grammar=spec, seed=seed, max_tokens=400, n=2))
            tokens = list(handle)
            for answer in range(2):
                assert handle.finish_reasons[answer] == "stop"
                data = b"".join(tokenizer.token_bytes(id) for id in ids_of(tokens, answer) if id < 256)
                assert json.loads(data)["a"] in (1, 22)
        with pytest.raises(UsageError, match="JSON schema"):
            engine.submit(request(grammar=GrammarSpec("json_schema", "{")))
        assert_idle(engine)


def test_several_threads_may_iterate_at_once() -> None:
    with Engine(FakeRunner(24)) as engine:
        asked = [request([n] * 30, seed=n, max_tokens=30 + n) for n in range(8)]
        got: dict[int, list[int]] = {}

        def consume(n: int, handle: Handle) -> None:
            got[n] = ids_of(list(handle))

        threads = [
            threading.Thread(target=consume, args=(n, engine.submit(one)), daemon=True) for n, one in enumerate(asked)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert got == {n: oracle(one) for n, one in enumerate(asked)}
        assert_idle(engine)


def test_closing_cancels_and_refuses() -> None:
    runner = FakeRunner()
    engine = Engine(runner)
    handle = engine.submit(request())
    next(handle)
    engine.close()
    engine.close()
    assert runner.closed
    assert list(handle) == []
    assert handle.finish_reasons == ["cancelled"]
    with pytest.raises(UsageError, match="closed"):
        engine.submit(request())
