"""From files to packs: the same whatever the number of processes, and nothing half-made when it fails."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byte_tokenizer
import numpy as np
import pytest

from qafila.data.encode import EncoderSettings, Unit
from qafila.data.encode_chunks import Chunk, Encoded, Plan, encode_all
from qafila.data.fingerprint import tokenizer_sha256
from qafila.data.pack import Packed, Progress, RawSource, pack_sources
from qafila.data.problems import Origin
from qafila.data.records import Record
from qafila.data.shards import Pack
from qafila.errors import DataError, FormatError, QafilaError, UsageError
from qafila.text.formats import chat_format
from qafila.text.template import TemplateFormat
from qafila.text.tokenizer import Tokenizer, load_tokenizer

ARABIC = "السلام عليكم"
TOKENIZER = byte_tokenizer.chatml()
CHAT = chat_format("chatml", TOKENIZER)


def write_chats(path: Path, count: int, *, start: int = 0) -> Path:
    lines = [
        json.dumps({"prompt": f"What is {n}?", "completion": f"{ARABIC} {n} " * (1 + n % 7)}, ensure_ascii=False)
        for n in range(start, start + count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pack(folder: Path, *paths: Path, objective: str = "sft", **options: Any) -> Packed:
    settings = EncoderSettings(objective, options.pop("sequence", 256))
    return pack_sources([RawSource(path) for path in paths], folder, settings, TOKENIZER, CHAT, **options)


def documents(folder: Path) -> list[tuple[str, str]]:
    """Text and learned text of every document of a pack."""
    found = []
    opened = Pack.open(folder)
    for number in range(len(opened)):
        row = opened.row(number)
        at = 0
        for length in row.lengths.tolist():
            ids, mask = row.ids[at : at + length], row.mask[at : at + length]
            at += length
            if mask.any():
                found.append((TOKENIZER.decode(ids.tolist()), TOKENIZER.decode(ids[mask].tolist())))
    return found


def test_packing_keeps_every_answer(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", 100)
    packed = pack(tmp_path / "pack", path)
    found = documents(tmp_path / "pack")
    assert len(found) == 100
    assert {learned for _, learned in found} == {f"{ARABIC} {n} " * (1 + n % 7) + "<|im_end|>" for n in range(100)}
    assert packed.manifest.documents == 100
    assert packed.manifest.facts.objective == "sft"
    assert packed.manifest.facts.chat_format == "chatml"
    assert packed.manifest.facts.tokenizer == tokenizer_sha256(TOKENIZER)
    (source,) = packed.manifest.sources
    assert (source.path, source.examples, source.refused, source.documents) == (str(path), 100, 0, 100)
    assert packed.validation is None


def test_the_result_does_not_depend_on_workers(tmp_path: Path) -> None:
    first = write_chats(tmp_path / "a.jsonl", 600)
    with first.open("a", encoding="utf-8") as file:
        file.write("broken\n")
    second = write_chats(tmp_path / "b.jsonl", 300, start=600)
    made = [
        pack(tmp_path / f"p{n}", first, second, workers=n, validation=tmp_path / f"v{n}", validation_share=0.1)
        for n in (1, 2, 3)
    ]
    assert len({packed.manifest.identity for packed in made}) == 1
    assert len({packed.validation.identity for packed in made if packed.validation}) == 1
    assert [packed.problems.to_dict() for packed in made[1:]] == [made[0].problems.to_dict()] * 2
    assert made[0].manifest.sources == made[1].manifest.sources


def test_held_out_records_are_the_same_ones_every_time(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", 500)
    packed = pack(tmp_path / "p", path, validation=tmp_path / "v", validation_share=0.1)
    assert packed.validation is not None
    held, kept = set(documents(tmp_path / "v")), set(documents(tmp_path / "p"))
    assert not held & kept
    assert len(held) + len(kept) == 500
    assert 30 <= len(held) <= 70
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\r\n".join(reversed(lines + lines[:50])), encoding="utf-8")  # another order, copies, other ends
    pack(tmp_path / "p2", path, validation=tmp_path / "v2", validation_share=0.1)
    assert set(documents(tmp_path / "v2")) == held


def test_folders_and_kinds_together(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(ARABIC * 3, encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"text": "b"}) + "\n" + json.dumps({"text": ""}), encoding="utf-8")
    packed = pack(tmp_path / "p", folder, objective="pretrain")
    assert sorted(text for text, _ in documents(tmp_path / "p")) == ["b<|im_end|>", ARABIC * 3 + "<|im_end|>"]
    assert [(s.examples, s.refused) for s in packed.manifest.sources] == [(1, 0), (1, 1)]
    assert packed.manifest.facts.chat_format is None
    assert packed.problems.counts["empty"] == 1


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", 1000)
    told: list[Progress] = []
    packed = pack(tmp_path / "p", path, progress=told.append)
    assert [p.records for p in told] == sorted(p.records for p in told)
    assert (told[-1].records, told[-1].documents) == (1000, 1000)
    assert told[-1].tokens == packed.manifest.tokens
    assert told[-1].read == told[-1].total == path.stat().st_size


def test_limit(tmp_path: Path) -> None:
    paths = [write_chats(tmp_path / f"{n}.jsonl", 10) for n in range(3)]
    packed = pack(tmp_path / "p", *paths, limit=15)
    assert [source.examples for source in packed.manifest.sources] == [10, 5, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_left_behind_when_it_fails(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "a.jsonl"
    chats = write_chats(path, 30).read_text(encoding="utf-8")
    path.write_text(chats + "broken\n" * 20, encoding="utf-8")
    with pytest.raises(DataError, match=r"20 of 50 records cannot be used.*a\.jsonl:31: not valid JSON"):
        pack(tmp_path / "p", path, workers=workers, validation=tmp_path / "v", validation_share=0.1)
    path.write_text('{"text": "no chat"}\n' * 5, encoding="utf-8")
    with pytest.raises(DataError, match=r"5 records, and none of use; the first: .*:1: objective sft learns"):
        pack(tmp_path / "p", path, workers=workers)
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(FormatError, match="damaged"):
        pack(tmp_path / "p", path, tmp_path / "b.jsonl.gz", workers=workers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl.gz"]


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl", 3)
    with pytest.raises(UsageError, match="nothing to pack"):
        pack(tmp_path / "p")
    with pytest.raises(UsageError, match="give both"):
        pack(tmp_path / "p", path, validation_share=0.1)
    with pytest.raises(UsageError, match="there are auto"):
        pack_sources([RawSource(path, "x")], tmp_path / "p", EncoderSettings("sft", 64), TOKENIZER, CHAT)
    with pytest.raises(DataError, match="no such file"):
        pack(tmp_path / "p", tmp_path / "none.jsonl")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x").touch()
    with pytest.raises(QafilaError):
        pack(tmp_path / "p", path)


def test_a_pair_stays_in_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"prompt": f"q{n}", "chosen": "good " * (n % 9 + 1), "rejected": f"bad {n}", "margin": n} for n in range(50)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    pack(tmp_path / "p", path, objective="dpo")
    margins = []
    opened = Pack.open(tmp_path / "p")
    for number in range(len(opened)):
        row = opened.row(number)
        kinds = [k for k in row.kinds.tolist() if k in (1, 2)]
        assert kinds == [1, 2] * (len(kinds) // 2)
        margins += [m for m, k in zip(row.margins.tolist(), row.kinds.tolist(), strict=True) if k == 1]
    assert sorted(margins) == list(range(50))


def chunks(count: int) -> Iterator[Chunk]:
    for n in range(count):
        raw = json.dumps({"prompt": "q", "completion": f"{ARABIC} {n}"}).encode()
        yield Chunk([Record(Origin("a", n + 1), raw)], [0], {0: ("auto", {})}, n)


def flat(encoded: Encoded) -> list[tuple[list[int], list[bool]]]:
    units: list[Unit] = [unit for unit, _, _ in encoded.units()]
    return [(d.ids.tolist(), d.mask.tolist()) for unit in units for d in unit]


def test_tokenizers_and_formats_travel_to_other_processes(shared_data: Path, default_gguf: Path) -> None:
    from qafila.text.formats_derivatives import SMOLLM2_TEMPLATE
    from qafila.weights.load import gguf_tokenizer

    default = gguf_tokenizer(default_gguf)
    llama2 = load_tokenizer(shared_data / "models" / "llama2_tokenizer.model")
    for chat in (
        chat_format("smollm2", default),
        TemplateFormat(SMOLLM2_TEMPLATE, default),
        chat_format("llama-2", llama2),
    ):
        plan = Plan(EncoderSettings("sft", 256), chat.tokenizer, chat)
        here = [flat(done) for done in encode_all(plan, chunks(2), 1)]
        again = pickle.loads(plan.dumps())
        assert [flat(done) for done in encode_all(again, chunks(2), 1)] == here


def test_results_come_in_order() -> None:
    plan = Plan(EncoderSettings("sft", 256), TOKENIZER, CHAT)
    expected = [flat(done) for done in encode_all(plan, chunks(40), 1)]
    assert [flat(done) for done in encode_all(plan, chunks(40), 2)] == expected


def test_a_process_that_dies_is_told() -> None:
    plan = Plan(EncoderSettings("sft", 256), Deadly(), chat_format("chatml", Deadly()))
    with pytest.raises(DataError, match="a process that tokenises died"):
        list(encode_all(plan, chunks(4), 2))


class Deadly(byte_tokenizer.ByteTokenizer):
    """Ends any process but the test's own."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer.CHATML, bos="<|im_start|>", eos="<|im_end|>")

    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]:
        import multiprocessing
        import os

        if multiprocessing.parent_process() is not None:
            os._exit(9)
        return super()._encode(text, special, continuation)


def test_fingerprints(default_gguf: Path, tmp_path: Path, llama3_tokenizer: Path) -> None:
    from qafila.weights.load import gguf_tokenizer

    default = gguf_tokenizer(default_gguf)
    own = tokenizer_sha256(default)
    (tmp_path / "tokenizer.json").write_text(json.dumps(default.to_tokenizer_json()), encoding="utf-8")
    assert tokenizer_sha256(load_tokenizer(tmp_path / "tokenizer.json")) == own
    others: list[Tokenizer] = [load_tokenizer(llama3_tokenizer), byte_tokenizer.chatml(), byte_tokenizer.llama2()]
    assert len({own, *map(tokenizer_sha256, others)}) == 4


def test_units_come_back_as_they_were() -> None:
    plan = Plan(EncoderSettings("dpo", 256), TOKENIZER, CHAT)
    raw = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0.5}).encode()
    (done,) = encode_all(
        plan, [Chunk([Record(Origin("a", 1), raw)] * 3, [4, 5, 4], {4: ("auto", {}), 5: ("auto", {})}, 0)], 1
    )
    units = list(done.units())
    assert [file for _, file, _ in units] == [4, 5, 4]
    for unit, _, held in units:
        assert not held
        assert [d.kind for d in unit] == [1, 2]
        assert [d.margin for d in unit] == [0.5, 0.5]
        assert all(d.ids.dtype == np.uint32 and d.n_targets == 1 for d in unit)
