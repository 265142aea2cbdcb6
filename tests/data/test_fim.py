"""Infilling examples: what Code Llama was trained on is what its infilling prompt asks for."""

from __future__ import annotations

import byte_tokenizer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.data.encode import Document, EncoderSettings, make_encoder
from qafila.data.fim import InfillEncoder
from qafila.data.forms import Example
from qafila.data.problems import Origin
from qafila.errors import UsageError
from qafila.text.formats_llama2 import CodeLlamaInfill

TOKENIZER = byte_tokenizer.llama2()
PRE, SUF, MID, EOT = (TOKENIZER.special_tokens[f"▁<{name}>"] for name in ("PRE", "SUF", "MID", "EOT"))


def encoder(**options: float | int) -> InfillEncoder:
    made = make_encoder(EncoderSettings("fim", 512, **options), TOKENIZER)  # type: ignore[arg-type]
    assert isinstance(made, InfillEncoder)
    return made


def document(made: InfillEncoder, text: str) -> Document:
    ((only,),) = made.units(Example("text", Origin("a.py", 1), text=text))
    return only


def back(ids: list[int]) -> tuple[str, str, str]:
    """Prefix, middle, suffix of an example."""
    assert ids[0] == TOKENIZER.bos_id
    assert ids[-1] == EOT
    assert ids[1] == PRE
    suf, mid = ids.index(SUF), ids.index(MID)
    decode = TOKENIZER.decode
    if suf == 2:  # suffix first: prefix and middle are one text
        return decode(ids[mid + 1 : -1]), "", decode(ids[3:mid])
    return decode(ids[2:suf]), decode(ids[mid + 1 : -1]), decode(ids[suf + 1 : mid])


TEXTS = st.text(st.characters(codec="utf-8"), min_size=2, max_size=60)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, spm=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 2**32))
def test_nothing_is_lost(text: str, spm: float, seed: int) -> None:
    ids = document(encoder(fim_rate=1.0, fim_spm=spm, seed=seed), text).ids.tolist()
    prefix, middle, suffix = back(ids)
    assert (prefix + middle + suffix).removeprefix(" ") == text.removeprefix(" ") or text.startswith(" ")
    assert (prefix + middle + suffix).lstrip(" ") == text.lstrip(" ")


@settings(max_examples=50, deadline=None)
@given(text=TEXTS, spm=st.booleans(), data=st.data())
def test_it_begins_with_the_prompt_of_infilling(text: str, spm: bool, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    ids = encoder().rearranged(text, start, end, spm=spm)
    prompt = CodeLlamaInfill(TOKENIZER).infill(text[:start], text[end:], spm=spm)
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :] == [*text[start:end].encode(), EOT]


def test_targets_are_all_but_the_marks() -> None:
    made = document(encoder(fim_rate=1.0), "def f():\n    return 'سلام'\n")
    for token, target in zip(made.ids.tolist(), made.mask.tolist(), strict=True):
        assert target == (token not in (PRE, SUF, MID, TOKENIZER.bos_id))
    assert made.mask[-1]


def test_rates_are_code_llamas() -> None:
    """0.9 of the documents, half of them suffix first, cuts uniform over characters."""
    made = encoder()
    texts = [f"{number:06d}" + "x" * 94 for number in range(3000)]
    all_ids = [document(made, text).ids.tolist() for text in texts]
    filled = [ids for ids in all_ids if PRE in ids]
    assert len(filled) / len(texts) == pytest.approx(0.9, abs=0.02)
    assert np.mean([ids[2] == SUF for ids in filled]) == pytest.approx(0.5, abs=0.03)
    middles = [len(back(ids)[1]) for ids in filled if ids[2] != SUF]
    assert np.mean(middles) == pytest.approx(100 / 3, abs=2)  # two uniform points are a third apart
    for ids in all_ids:
        if PRE not in ids:
            assert ids[-1] == TOKENIZER.eos_id


def test_cuts_depend_on_text_and_seed_alone() -> None:
    text = "def f(x):\n    return x\n" * 3
    first = document(encoder(seed=1, fim_rate=1.0), text).ids.tolist()
    assert document(encoder(seed=1, fim_rate=1.0), text).ids.tolist() == first
    assert any(document(encoder(seed=s, fim_rate=1.0), text).ids.tolist() != first for s in range(2, 6))


def test_documents_that_a_row_cuts_stay_as_they_are() -> None:
    made = encoder(fim_rate=1.0)
    units = made.units(Example("text", Origin("a.py", 1), text="x" * 2000))
    assert len(units) == 4
    assert not any(np.isin(PRE, d.ids) for (d,) in units)
    for first, last in ((True, False), (False, True)):
        portion = Example("text", Origin("a"), text="x" * 50, first=first, last=last)
        assert not any(np.isin(PRE, d.ids) for (d,) in made.units(portion))
    fitting = made.units(Example("text", Origin("a.py", 1), text="x" * 508))  # 511 with BOS, space and EOS
    assert [len(d) for (d,) in fitting] == [511]


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"objective fim: .*▁<PRE>"):
        make_encoder(EncoderSettings("fim", 512), byte_tokenizer.llama3())
