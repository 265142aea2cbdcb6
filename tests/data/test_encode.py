"""Examples as tokens: the answer and its end are learned in every chat format, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_tokenizer
import numpy as np
import pytest
from hypothesis import given as having
from hypothesis import settings
from hypothesis import strategies as st

from qafila.data.encode import CHOSEN, REJECTED, Document, EncoderSettings, make_encoder
from qafila.data.forms import Example, example
from qafila.data.problems import KINDS, ExampleError, Origin
from qafila.errors import UsageError
from qafila.text.chat_format import ChatFormat
from qafila.text.formats import FORMATS, chat_format
from qafila.text.messages import Message
from qafila.text.template import TemplateFormat
from qafila.text.tokenizer import Tokenizer

ARABIC = "وعليكم السلام"
TOKENIZERS = {
    name: getattr(
        byte_tokenizer,
        "llama3" if name.startswith("llama-3") else "llama4" if name == "llama-4"
        else "chatml" if name in ("chatml", "smollm2") else "llama2",
    )
    for name in FORMATS
}  # fmt: skip
ENDS = {
    "llama-3": "<|eot_id|>", "llama-3.1": "<|eot_id|>", "llama-3.2": "<|eot_id|>", "llama-4": "<|eot|>",
    "chatml": "<|im_end|>", "smollm2": "<|im_end|>", "dolly": "\n\n### End", "code-llama-70b": "<step>",
}  # fmt: skip
WHERE = Origin("a.jsonl", 1)


def chat_of(name: str) -> ChatFormat:
    return chat_format(name, TOKENIZERS[name]())


def conversation(*turns: str, **answers: Any) -> Example:
    roles = ["assistant" if i % 2 else "user" for i in range(len(turns))]
    value = {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]}
    value["messages"][-1].update(answers)
    return example(value, WHERE)


def one(
    chat: ChatFormat, given: Example, objective: str = "sft", sequence: int = 4096, **options: Any
) -> tuple[Document, ...]:
    (unit,) = make_encoder(EncoderSettings(objective, sequence, **options), chat.tokenizer, chat).units(given)
    return unit


def learned(tokenizer: Tokenizer, document: Document) -> list[str]:
    """Texts of the runs of targets."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], document.mask, [0]]).astype(int)))
    return [tokenizer.decode(document.ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_learns_the_answers_and_their_ends(name: str) -> None:
    chat = chat_of(name)
    (document,) = one(chat, conversation("Hi", "Hello.", "السلام عليكم", ARABIC))
    end = ENDS.get(name, "</s>")
    runs = learned(chat.tokenizer, document)
    assert [run.replace(" ", "") for run in runs] == [
        f"Hello.{end}".replace(" ", ""), f"{ARABIC}{end}".replace(" ", "")
    ]  # fmt: skip
    assert document.mask[-1]  # nothing behind the last end
    assert not document.mask[0]
    rendered = chat.render(conversation("Hi", "Hello.", "السلام عليكم", ARABIC).messages, add_generation_prompt=False)
    assert rendered.ids[: len(document)] == document.ids.tolist()
    assert document.ids.dtype == np.uint32
    assert document.mask.dtype == np.bool_


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_was_cut_off_does_not_teach_to_stop(name: str) -> None:
    chat = chat_of(name)
    text = "Once upon a"
    ids = chat.tokenizer.encode_continuation(text)
    (cut,) = one(chat, conversation("Tell", text, ids=ids))
    assert learned(chat.tokenizer, cut) == [text]
    (whole,) = one(chat, conversation("Tell", text, ids=[*ids, chat.stop_ids[0]]))
    assert learned(chat.tokenizer, whole) == [text + chat.tokenizer.decode([chat.stop_ids[0]])]
    with pytest.raises(ExampleError, match="no token of an answer"):
        one(chat, Example("chat", WHERE, messages=(Message("user", "x"), Message("assistant", "", ids=())),
                          learn=(True, True)))  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_of_weight_0_is_only_read(name: str) -> None:
    chat = chat_of(name)
    given = example(
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "WRONG", "weight": 0},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "right"},
            ]
        },
        WHERE,
    )
    (document,) = one(chat, given)
    (run,) = learned(chat.tokenizer, document)
    assert "right" in run
    assert "WRONG" in chat.tokenizer.decode(document.ids.tolist())


def test_a_template_without_an_end_is_refused() -> None:
    source = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    chat = TemplateFormat(source, byte_tokenizer.chatml())
    with pytest.raises(ExampleError, match="learn not to stop"):
        one(chat, conversation("q", "a"))


def test_a_template_is_told_one_date() -> None:
    source = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = TemplateFormat(source, byte_tokenizer.chatml())
    (document,) = one(chat, conversation("q", "a"))
    assert chat.tokenizer.decode(document.ids.tolist()).startswith("26 Jul 2024")
    assert learned(chat.tokenizer, document) == ["a<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("alpaca", "### Input:\nctx\n"), ("dolly", "Input:\nctx\n"), ("chatml", "q\n\nctx")],
)
def test_an_instruction_with_an_input(name: str, shown: str) -> None:
    chat = chat_of(name)
    (document,) = one(chat, example({"instruction": "q", "input": "ctx", "output": "a"}, WHERE))
    assert shown in chat.tokenizer.decode(document.ids.tolist())


def test_long_conversations() -> None:
    chat = chat_of("chatml")
    given = conversation("q", "a" * 200)
    (cut,) = one(chat, given, sequence=64)
    assert len(cut) == 64
    assert set(learned(chat.tokenizer, cut)[0]) == {"a"}
    with pytest.raises(ExampleError, match="more than the 64") as caught:
        one(chat, given, sequence=64, overlong="skip")
    assert caught.value.kind == "overlong"
    with pytest.raises(ExampleError, match="no answer begins within them"):
        one(chat, conversation("q" * 200, "a"), sequence=64)


def test_what_an_objective_does_not_take() -> None:
    chat = chat_of("chatml")
    text = Example("text", WHERE, text="x")
    pair = example({"prompt": "q", "chosen": "a", "rejected": "b"}, WHERE)
    talk = conversation("q", "a")
    for objective, given in [("sft", text), ("sft", pair), ("dpo", talk), ("reward", text), ("pretrain", talk),
                             ("pretrain", pair)]:  # fmt: skip
        with pytest.raises(ExampleError, match=objective) as caught:
            one(chat, given, objective)
        assert caught.value.kind == "refused"
    with pytest.raises(ExampleError, match="has no tool calls"):
        one(chat_of("vicuna"), Example("chat", WHERE, messages=(*talk.messages,), learn=talk.learn,
                                       tools=(_tool(),)))  # fmt: skip
    with pytest.raises(UsageError, match="no chat format"):
        make_encoder(EncoderSettings("sft", 64), chat.tokenizer)
    with pytest.raises(UsageError, match="end-of-sequence"):
        make_encoder(EncoderSettings("pretrain", 64), byte_tokenizer.ByteTokenizer())
    for objective, sequence, overlong in (("x", 64, None), ("sft", 1, None), ("sft", 64, "split"), ("fim", 64, "x")):
        with pytest.raises(UsageError):
            EncoderSettings(objective, sequence, overlong)


def _tool() -> Any:
    from qafila.text.messages import ToolSchema

    return ToolSchema("f")


def test_pretraining_learns_every_token_but_the_first() -> None:
    tokenizer = byte_tokenizer.llama2()
    encoder = make_encoder(EncoderSettings("pretrain", 16), tokenizer)
    ((document,),) = encoder.units(Example("text", WHERE, text=ARABIC[:3]))
    assert document.ids.tolist() == [tokenizer.bos_id, *b" ", *ARABIC[:3].encode(), tokenizer.eos_id]
    assert document.mask.tolist() == [False] + [True] * (len(document) - 1)


def test_long_texts_are_split_and_nothing_is_lost() -> None:
    tokenizer = byte_tokenizer.llama3()
    text = "x" * 8 + ARABIC * 5
    whole = [tokenizer.bos_id, *text.encode(), tokenizer.eos_id]
    units = make_encoder(EncoderSettings("pretrain", 16), tokenizer).units(Example("text", WHERE, text=text))
    assert [int(i) for (d,) in units for i in d.ids] == whole
    assert all(len(d) == 16 for (d,) in units[:-1])
    (first,) = make_encoder(EncoderSettings("pretrain", 16, "truncate"), tokenizer).units(
        Example("text", WHERE, text=text)
    )
    assert first[0].ids.tolist() == whole[:16]
    with pytest.raises(ExampleError, match="more than the 16"):
        make_encoder(EncoderSettings("pretrain", 16, "skip"), tokenizer).units(Example("text", WHERE, text=text))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_end_of_a_text_is_not_lost_behind_whole_rows(rows: int) -> None:
    tokenizer = byte_tokenizer.llama3()
    encoder = make_encoder(EncoderSettings("pretrain", 16), tokenizer)
    text = "a" * (16 * rows - 1)  # with BOS and EOS one token more than whole rows
    pieces = [document.ids.tolist() for (document,) in encoder.units(Example("text", WHERE, text=text))]
    whole = [*tokenizer.encode(text, bos=True), tokenizer.eos_id]
    assert [token for piece in pieces for token in piece] == whole
    assert [len(piece) for piece in pieces] == [16] * (rows - 1) + [15, 2]


class Silent(byte_tokenizer.ByteTokenizer):
    """Writes nothing for a soft hyphen, as tokenizers that normalise do."""

    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]:
        return super()._encode(text.replace("\u00ad", ""), special, continuation)


def test_a_text_without_a_token_is_told_and_not_lost_in_silence() -> None:
    encoder = make_encoder(EncoderSettings("pretrain", 64), Silent(("</s>",), eos="</s>"))
    with pytest.raises(ExampleError, match="no token in it to learn") as caught:
        encoder.units(Example("text", WHERE, text="\u00ad"))
    assert caught.value.kind == "empty"
    assert encoder.units(Example("text", WHERE, text="\u00ad", first=False)) == []
    assert len(encoder.units(Example("text", WHERE, text="\u00adx"))) == 1


def test_portions_of_a_text_have_one_start_and_one_end() -> None:
    tokenizer = byte_tokenizer.llama2()
    encoder = make_encoder(EncoderSettings("pretrain", 64), tokenizer)
    pieces = [
        Example("text", WHERE, text="ab", last=False),
        Example("text", WHERE, text="cd", first=False, last=False),
        Example("text", WHERE, text="ef", first=False),
    ]
    ids = [int(i) for piece in pieces for (d,) in encoder.units(piece) for i in d.ids]
    assert ids == [tokenizer.bos_id, *b" abcdef", tokenizer.eos_id]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_pairs_share_their_prompt_and_learn_their_answers(name: str, objective: str) -> None:
    chat = chat_of(name)
    given = example(
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "earlier"},
                {"role": "user", "content": "q"},
            ],
            "chosen": "good",
            "rejected": ARABIC,
            "margin": 2 / 3,
        },
        WHERE,
    )
    chosen, rejected = one(chat, given, objective)
    assert (chosen.kind, rejected.kind) == (CHOSEN, REJECTED)
    assert chosen.margin == pytest.approx(2 / 3)
    prompt = int(np.flatnonzero(chosen.mask)[0])
    prompt = min(prompt, int(np.flatnonzero(rejected.mask)[0]))
    assert chosen.ids[:prompt].tolist() == rejected.ids[:prompt].tolist()
    for document, text in ((chosen, "good"), (rejected, ARABIC)):
        (run,) = learned(chat.tokenizer, document)
        end = ENDS.get(name, "</s>")
        if objective == "dpo" and name != "dolly":  # over this tokenizer Dolly's end is text, not a token
            assert run.strip() == text
            assert not document.mask[-1]
            assert chat.tokenizer.decode(document.ids.tolist()).endswith(end)
        else:
            assert run.replace(" ", "") == f"{text}{end}".replace(" ", "")


def test_the_end_of_a_pair_can_be_learned() -> None:
    chat = chat_of("chatml")
    given = example({"prompt": "q", "chosen": "good", "rejected": "bad"}, WHERE)
    pair = one(chat, given, "dpo", mask_format_tokens=False)
    assert [learned(chat.tokenizer, d) for d in pair] == [["good<|im_end|>"], ["bad<|im_end|>"]]


@pytest.mark.parametrize(
    ("chosen", "rejected", "lengths"), [(200, 200, (64, 64)), (5, 200, None), (200, 5, None), (10, 12, None)]
)
def test_a_pair_fits_one_row(chosen: int, rejected: int, lengths: tuple[int, int] | None) -> None:
    chat = chat_of("chatml")
    given = example({"prompt": "q", "chosen": "g" * chosen, "rejected": "b" * rejected}, WHERE)
    first, second = one(chat, given, "dpo", sequence=128)
    assert len(first) + len(second) <= 128
    if lengths is not None:
        assert (len(first), len(second)) == lengths
    elif chosen + rejected > 100:
        assert len(first) + len(second) == 128
    for document in (first, second):
        assert document.n_targets
    with pytest.raises(ExampleError, match="that a pair shares"):
        one(chat, example({"prompt": "q" * 90, "chosen": "g", "rejected": "b"}, WHERE), "dpo", sequence=128)


def test_pairs_whose_rows_hold_no_difference_are_refused() -> None:
    chat = chat_of("chatml")
    given = example({"prompt": "q", "chosen": "x" * 200 + "a", "rejected": "x" * 200 + "b"}, WHERE)
    with pytest.raises(ExampleError, match="the same tokens"):
        one(chat, given, "dpo", sequence=128)


def test_the_default_model_gives_the_ids_of_transformers(default_gguf: Path) -> None:
    """The default model's own template, rendered by transformers over its own tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    from qafila.text.formats import detect_format
    from qafila.text.formats_derivatives import SMOLLM2_TEMPLATE
    from qafila.weights.load import gguf_tokenizer

    tokenizer = gguf_tokenizer(default_gguf)
    chat = detect_format(SMOLLM2_TEMPLATE, tokenizer)
    import json

    import tokenizers

    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_tokenizer_json()))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=SMOLLM2_TEMPLATE)
    for turns in (
        ("Hi", "Hello."),
        ("ما عاصمة مصر؟", "القاهرة."),
        ("a  b\n", "12345 \n", "c", "d"),
    ):
        given = conversation(*turns)
        (document,) = one(chat, given)
        messages = [{"role": m.role, "content": m.text} for m in given.messages]
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert expected[: len(document)] == document.ids.tolist()
        assert theirs.decode(expected[len(document) :]) == "\n"
        assert learned(tokenizer, document) == [f"{m.text}<|im_end|>" for m in given.messages if m.role == "assistant"]


def test_text_that_spells_a_special_token_is_text(default_gguf: Path) -> None:
    from qafila.weights.load import gguf_tokenizer

    tokenizer = gguf_tokenizer(default_gguf)
    chat = chat_format("smollm2", tokenizer)
    (document,) = one(chat, conversation("a<|im_end|>b", "c<|im_end|>d"))
    end = tokenizer.special_tokens["<|im_end|>"]
    assert int((document.ids == end).sum()) == 3  # system, user, assistant
    assert int((document.ids[document.mask] == end).sum()) == 1


TURNS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@having(
    name=st.sampled_from(sorted(FORMATS)),
    turns=TURNS,
    sequence=st.integers(8, 200),
    overlong=st.sampled_from([None, "skip"]),
)
def test_any_conversation_fits_its_row_or_is_told(
    name: str, turns: list[str], sequence: int, overlong: str | None
) -> None:
    chat = chat_of(name)
    try:
        given = conversation(*turns)
        (document,) = one(chat, given, sequence=sequence, overlong=overlong)
    except ExampleError as error:
        told = str(error)
    else:
        told = ""
        assert 1 < len(document) <= sequence
        assert document.n_targets
        assert not document.mask[0]
        rendered = chat.render(given.messages, add_generation_prompt=False)
        assert document.ids.tolist() == rendered.ids[: len(document)]
        assert document.mask.tolist() == rendered.mask[: len(document)]
    assert "\n" not in told


@settings(max_examples=100, deadline=None)
@having(
    prompt=st.text(max_size=30),
    sides=st.tuples(st.text(max_size=90), st.text(max_size=90)),
    sequence=st.integers(16, 200),
)
def test_any_pair_fits_its_row_or_is_told(prompt: str, sides: tuple[str, str], sequence: int) -> None:
    chat = chat_of("llama-3")
    try:
        given = example({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}, WHERE)
        pair = one(chat, given, "dpo", sequence=sequence)
    except ExampleError as error:
        assert error.kind in KINDS  # noqa: PT017
        return
    assert sum(map(len, pair)) <= sequence
    assert all(document.n_targets for document in pair)
    start = min(int(np.flatnonzero(document.mask)[0]) for document in pair)
    assert pair[0].ids[:start].tolist() == pair[1].ids[:start].tolist()
