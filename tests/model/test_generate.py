from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from qafila import memory
from qafila.config import ModelConfig
from qafila.errors import ContextLengthError, QafilaError, UsageError
from qafila.generation import GeneratedToken
from qafila.model.generate import PREFILL_TOKENS, generate, next_logits
from qafila.model.llama import LlamaModel
from qafila.model.load import load_model
from qafila.model.random_weights import random_tensors
from qafila.sampling import GREEDY, Occurrences, SamplingParams, sample, uniform

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=60, context_length=64
)
PROMPT = [5, 17, 3, 44]


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    return load_model(CONFIG, random_tensors(CONFIG, 0, scale=1.5))


@pytest.fixture(scope="module")
def reference(model: LlamaModel) -> LlamaForCausalLM:
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=CONFIG.norm_eps,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    reference.load_state_dict(model.state_dict())
    return reference.eval()


def ids(tokens: Iterator[GeneratedToken]) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(model: LlamaModel, reference: LlamaForCausalLM, penalty: float) -> None:
    expected = reference.generate(
        torch.tensor([PROMPT]),
        generation_config=GenerationConfig(
            max_new_tokens=40, do_sample=False, repetition_penalty=penalty, pad_token_id=0
        ),
    )
    params = SamplingParams(temperature=0, repetition_penalty=penalty)
    assert ids(generate(model, PROMPT, params=params, max_tokens=40)) == expected[0, len(PROMPT) :].tolist()


def test_logprobs_equal_a_full_forward(model: LlamaModel) -> None:
    tokens = list(generate(model, PROMPT, params=SamplingParams(temperature=1.2), max_tokens=20, seed=3))
    sequence = PROMPT + [token.id for token in tokens]
    logprobs = model(torch.tensor([sequence])).log_softmax(-1)[0]
    for at, token in enumerate(tokens, len(PROMPT)):
        assert token.logprob == pytest.approx(float(logprobs[at - 1, token.id]), abs=1e-5)


def test_the_seed_and_the_sample_decide(model: LlamaModel) -> None:
    def run(seed: int, sample_index: int = 0) -> list[int]:
        return ids(generate(model, PROMPT, max_tokens=20, seed=seed, sample_index=sample_index))

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1) != run(1, sample_index=1)
    assert run(2**64 - 1) == run(2**64 - 1)
    free = [ids(generate(model, PROMPT, max_tokens=20)) for _ in range(2)]
    assert free[0] != free[1]


def test_each_token_is_a_function_of_its_position(model: LlamaModel) -> None:
    """Whoever has the logits can draw the same tokens: nothing is carried from one token to the next."""
    params = SamplingParams(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.5)
    tokens = ids(generate(model, PROMPT, params=params, max_tokens=12, seed=11))
    sequence = PROMPT + tokens
    for at in range(len(PROMPT), len(sequence)):
        prefix = sequence[:at]
        so_far = Occurrences(PROMPT, prefix[len(PROMPT) :])
        logits_V = next_logits(model, prefix, model.new_cache())
        assert sample(logits_V, params, so_far, uniform(11, at)).id == sequence[at]


def test_a_resumed_generation_is_the_same(model: LlamaModel) -> None:
    whole = ids(generate(model, PROMPT, max_tokens=20, seed=5))
    assert ids(generate(model, PROMPT + whole[:8], max_tokens=12, seed=5)) == whole[8:]


def test_a_kept_cache_changes_nothing(model: LlamaModel) -> None:
    cache = model.new_cache()
    first = ids(generate(model, PROMPT, params=GREEDY, max_tokens=10, cache=cache))
    assert cache.length == len(PROMPT) + 9
    turn = [*PROMPT, *first, 7, 8]
    kept = ids(generate(model, turn, params=GREEDY, max_tokens=10, cache=cache))
    assert kept == ids(generate(model, turn, params=GREEDY, max_tokens=10))
    # The very same prompt again: its last token is read once more.
    assert ids(generate(model, turn, params=GREEDY, max_tokens=10, cache=cache)) == kept


def test_a_long_prompt_is_read_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `qafila info` says of the workspace is true: it counts on the same portion."""
    assert PREFILL_TOKENS == memory.PREFILL_TOKENS
    config = CONFIG.with_changes(context_length=2048)
    model = load_model(config, random_tensors(config, 0, scale=1.5))
    prompt = [i * i % 60 for i in range(2 * PREFILL_TOKENS + 3)]
    with torch.inference_mode():
        whole = model(torch.tensor([prompt]))[0, -1]
    sizes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **rest: sizes.append(ids.shape[1]) or forward(ids, **rest))
    cache = model.new_cache()
    logits_V = next_logits(model, prompt, cache)
    assert sizes == [PREFILL_TOKENS, PREFILL_TOKENS, 3]
    assert cache.length == len(prompt)
    torch.testing.assert_close(torch.from_numpy(logits_V), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), torch.OutOfMemoryError("CUDA")]
)
def test_lack_of_memory_is_one_line(model: LlamaModel, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(QafilaError, match="not enough memory for 4 tokens of context"):
        list(generate(model, PROMPT))


def test_other_failures_of_torch_are_not_hidden(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        list(generate(model, PROMPT))


def test_streaming_is_lazy(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))
    stream = generate(model, PROMPT, max_tokens=5)
    assert not calls
    next(stream)
    assert len(calls) == 1
    # The caller's own code between two tokens is not put into inference mode.
    assert not torch.is_inference_mode_enabled()
    assert len(list(stream)) == 4
    assert len(calls) == 5


def test_stop_token_ends_the_answer(model: LlamaModel) -> None:
    free = ids(generate(model, PROMPT, params=GREEDY, max_tokens=10))
    stop = free[4]
    first = free.index(stop)
    tokens = list(generate(model, PROMPT, params=GREEDY, max_tokens=10, stop_ids={stop}))
    assert [token.id for token in tokens] == free[: first + 1]
    assert [token.finish_reason for token in tokens] == [None] * first + ["stop"]


def test_length_ends_the_answer(model: LlamaModel) -> None:
    tokens = list(generate(model, PROMPT, max_tokens=3))
    assert [token.finish_reason for token in tokens] == [None, None, "length"]


def test_the_contexts_end_ends_the_answer(model: LlamaModel) -> None:
    tokens = list(generate(model, PROMPT, max_tokens=1000))
    assert len(tokens) == CONFIG.context_length - len(PROMPT)
    assert tokens[-1].finish_reason == "length"
    assert len(list(generate(model, [1] * 63))) == 1


@pytest.mark.parametrize("length", [64, 65, 1000])
def test_a_prompt_beyond_the_context_is_refused(model: LlamaModel, length: int) -> None:
    with pytest.raises(ContextLengthError, match=f"{length} tokens.*64"):
        generate(model, [1] * length)


@pytest.mark.parametrize(
    ("prompt", "options", "problem"),
    [
        ([], {}, "no tokens"),
        ([1, 60], {}, "token 60"),
        ([-1], {}, "token -1"),
        ([1.5], {}, "token 1.5"),
        ([True], {}, "token True"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"max_tokens": 2.5}, "max_tokens"),
        ([1], {"max_tokens": "9"}, "max_tokens"),
        ([1], {"seed": -1}, "seed"),
        ([1], {"stop_strings": ["x"]}, "need a tokenizer"),
    ],
)
def test_nonsense_is_refused_at_once(
    model: LlamaModel, prompt: list[int], options: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        generate(model, prompt, **options)  # type: ignore[arg-type]


class Pieces:
    """A tokenizer of fixed pieces; the last byte of a character can wait for the next token, as UTF-8 does."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self.pieces = pieces
        self.pending = b""

    def push(self, token_id: int) -> str:
        self.pending += self.pieces[token_id]
        for cut in range(len(self.pending), -1, -1):
            try:
                text = self.pending[:cut].decode()
            except UnicodeDecodeError:
                continue
            self.pending = self.pending[cut:]
            return text
        return ""

    def finish(self) -> str:
        text = self.pending.decode(errors="replace")
        self.pending = b""
        return text


def spoken(model: LlamaModel, pieces: list[bytes], stop_strings: list[str]) -> list[GeneratedToken]:
    """A generation whose tokens, whatever they are, read as ``pieces``."""
    free = ids(generate(model, PROMPT, params=GREEDY, max_tokens=len(pieces)))

    class Script(Pieces):
        def __init__(self) -> None:
            super().__init__({})
            self.script = iter(pieces)

        def push(self, token_id: int) -> str:
            self.pieces[token_id] = next(self.script)
            return super().push(token_id)

    stream = Script()
    tokens = list(
        generate(
            model,
            PROMPT,
            params=GREEDY,
            max_tokens=len(pieces),
            stop_strings=stop_strings,
            text_stream=stream,
        )
    )
    assert [token.id for token in tokens] == free[: len(tokens)]
    return tokens


def shown(tokens: list[GeneratedToken]) -> list[str]:
    return [token.text for token in tokens]


def test_text_streams_whole_characters(model: LlamaModel) -> None:
    tokens = spoken(model, [b"caf", b"\xc3", b"\xa9 ", b"\xd9", b"\x84"], [])
    assert shown(tokens) == ["caf", "", "é ", "", "ل"]
    assert shown(spoken(model, [b"a", b"\xd9"], [])) == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("pieces", "stops", "texts", "reason"),
    [
        # whole in one token, text after it dropped
        ([b"one", b" STOP two"], ["STOP"], ["one", " "], "stop_string"),
        # split over three tokens: none of it leaks
        ([b"hi S", b"TO", b"P!", b"x"], ["STOP"], ["hi ", "", ""], "stop_string"),
        # a false start is given back as soon as it is one
        ([b"hi S", b"TA", b"RT"], ["STOP"], ["hi ", "STA", "RT"], "length"),
        # a false start that hides a true one
        ([b"aa", b"ab", b"x"], ["aab"], ["", "a"], "stop_string"),
        # held text comes out at the end
        ([b"so", b" ST"], ["STOP"], ["so", " ST"], "length"),
        # the earliest of two stop strings
        ([b"x", b"END STOP"], ["STOP", "END"], ["x", ""], "stop_string"),
        # across a character that is split itself
        ([b"a\xd9", b"\x84b", b"c"], ["لb"], ["a", ""], "stop_string"),
        # completed by the replacement character of a broken end
        ([b"ab", b"c\xd9"], ["c\ufffd"], ["ab", ""], "stop_string"),
        ([b"a\n", b"\n", b"z"], ["\n\n"], ["a", ""], "stop_string"),
    ],
)
def test_stop_strings(model: LlamaModel, pieces: list[bytes], stops: list[str], texts: list[str], reason: str) -> None:
    tokens = spoken(model, pieces, stops)
    assert shown(tokens) == texts
    assert tokens[-1].finish_reason == reason
    assert all(token.finish_reason is None for token in tokens[:-1])


def test_held_text_comes_out_before_a_stop_token(model: LlamaModel) -> None:
    free = ids(generate(model, PROMPT, params=GREEDY, max_tokens=10))
    stop = next(i for i in free if i != free[0])
    stream = Pieces(dict.fromkeys(range(60), b"S"))
    tokens = list(
        generate(model, PROMPT, params=GREEDY, stop_ids=[stop], stop_strings=["S" * 50 + "!"], text_stream=stream)
    )
    assert tokens[-1].finish_reason == "stop"
    assert shown(tokens)[:-1] == [""] * (len(tokens) - 1)
    assert tokens[-1].text == "S" * (len(tokens) - 1)


@pytest.mark.parametrize("stops", ["text", [""], [5], [b"x"]])
def test_stop_strings_must_be_strings_with_text(model: LlamaModel, stops: object) -> None:
    with pytest.raises(UsageError, match="stop_strings"):
        generate(model, PROMPT, stop_strings=stops, text_stream=Pieces({}))  # type: ignore[arg-type]
