"""From files to a pack: read, tokenise on all cores, lay into rows. The result does not depend on how many cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qafila.data.encode import EncoderSettings
from qafila.data.encode_chunks import Chunk, Plan, encode_all
from qafila.data.fingerprint import tokenizer_sha256
from qafila.data.forms import check_form
from qafila.data.manifest import Manifest, PackFacts, SourceFacts
from qafila.data.problems import Problems
from qafila.data.records import Record, file_sha256, kind_of, list_files, read_records
from qafila.data.shards import PackWriter
from qafila.errors import DataError, UsageError
from qafila.text.chat_format import ChatFormat
from qafila.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class RawSource:
    """Files to be packed.

    Attributes:
        path: a file, or a folder of them.
        form: how records are written, one of `qafila.data.forms.FORMS`.
        fields: the form's own names for fields -> what the files call them.
    """

    path: Path
    form: str = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far packing is.

    Attributes:
        records: read so far. refused: of those, left out.
        documents, tokens: made of them.
        read, total: bytes of the files.
    """

    records: int
    refused: int
    documents: int
    tokens: int
    read: int
    total: int


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing made.

    Attributes:
        manifest: of the pack.
        validation: of the pack of what was held out; None where nothing was.
        problems: what was left out, and why.
    """

    manifest: Manifest
    validation: Manifest | None
    problems: Problems


def pack_sources(
    sources: Sequence[RawSource],
    folder: Path,
    settings: EncoderSettings,
    tokenizer: Tokenizer,
    chat: ChatFormat | None = None,
    *,
    validation: Path | None = None,
    validation_share: float = 0.0,
    workers: int = 0,
    bad_records: float = 0.01,
    limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Packed:
    """Pack files into rows of tokens.

    Args:
        sources: the files, in the order in which they are packed.
        folder: where the pack is to be; nothing may be there yet.
        settings: objective, length of a row, and what else says how examples become tokens.
        tokenizer, chat: the model's; sft, dpo and reward need a chat format.
        validation: where the pack of what is held out is to be.
        validation_share: share of the records held out. A record is held out or not for what is in it alone, so it is
            the same ones every time, and copies of one never lie on both sides.
        workers: processes that tokenise; 0: one a core where there is enough to do.
        bad_records: share of the records that may be mistakes (and ten always may).
        limit: stop after that many records.
        progress: is called now and then.

    Raises:
        DataError: nothing there, nothing usable, or too many records that cannot be used.
        FormatError: a damaged file.
        UsageError: settings that do not go together.
        StorageError: the disk is full, or something is in the way.
    """
    if not sources:
        raise UsageError("nothing to pack: name at least one file or folder")
    if (validation_share > 0) != (validation is not None):
        raise UsageError("validation: give both a folder and a share of records for what is held out, or neither")
    for source in sources:
        check_form(source.form, source.fields)
    files = _Files(sources)
    if workers == 0:
        workers = (os.cpu_count() or 1) if files.total >= _WORTH_PROCESSES else 1
    facts = PackFacts(
        sequence=settings.sequence,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer_sha256(tokenizer),
        objective=settings.objective,
        chat_format=None if chat is None or settings.of_texts else chat.name,
        mask_rule=settings.rule,
        pad_id=next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0),
        settings=settings.to_dict(),
    )
    what = ", ".join(str(source.path) for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    problems = Problems(bad_records)
    with ExitStack() as stack:
        writer = stack.enter_context(PackWriter(folder, facts))
        held = None if validation is None else stack.enter_context(PackWriter(validation, facts))
        documents = tokens = n_held = 0
        plan = Plan(settings, tokenizer, chat, validation_share)
        for done in encode_all(plan, files.chunks(limit), workers):
            problems.merge(done.problems)
            problems.check(what, final=False)
            files.count(done.taken, done.refused)
            for unit, file, out in done.units():
                if out and held is not None:
                    n_held += 1
                    held.add(unit, file)
                else:
                    writer.add(unit, file)
            documents += len(done.lengths)
            tokens += len(done.ids)
            if progress is not None:
                refused = problems.counts.total()
                progress(Progress(problems.seen, refused, documents, tokens, done.read, files.total))
        problems.check(what)
        if not documents:
            first = f"; the first: {problems.first[0]}" if problems.first else ""
            raise DataError(f"{what}: {problems.seen:,} records, and none of use{first}")
        if not documents - n_held:
            raise DataError(f"{what}: all records are held out for validation; give a smaller share")
        told = files.facts()
        return Packed(writer.finish(told), held.finish(told) if held is not None and n_held else None, problems)


class _Files:
    """The files of the sources: read in chunks, and what became of each."""

    def __init__(self, sources: Sequence[RawSource]) -> None:
        self._files: list[tuple[Path, RawSource]] = []
        for source in sources:
            self._files += [(file, source) for file in list_files(source.path)]
        self._sizes = [file.stat().st_size for file, _ in self._files]
        self.total = sum(self._sizes)
        self._sha256: list[str | None] = [None] * len(self._files)
        self._taken = [0] * len(self._files)
        self._refused = [0] * len(self._files)

    def chunks(self, limit: int | None) -> Iterator[Chunk]:
        """All records, many at once."""
        records: list[Record] = []
        numbers: list[int] = []
        size = seen = before = position = 0

        def chunk() -> Chunk:
            forms = {n: (self._files[n][1].form, self._files[n][1].fields) for n in set(numbers)}
            return Chunk(records, numbers, forms, before + position)

        def told(value: int) -> None:
            nonlocal position
            position = value

        for number, (file, source) in enumerate(self._files):
            self._sha256[number] = file_sha256(file)
            as_text = source.form == "text" and kind_of(file) is None
            for record in read_records(file, as_text=as_text, told=told):
                if limit is not None and seen >= limit:
                    break
                seen += 1
                records.append(record)
                numbers.append(number)
                size += len(record.raw)
                if size >= _CHUNK_BYTES or len(records) >= _CHUNK_RECORDS:
                    yield chunk()
                    records, numbers, size = [], [], 0
            before, position = before + self._sizes[number], 0
            if limit is not None and seen >= limit:
                break
        if records:
            yield chunk()

    def count(self, taken: Mapping[int, int], refused: Mapping[int, int]) -> None:
        """Add to what became of the records of each file."""
        for into, counts in ((self._taken, taken), (self._refused, refused)):
            for number, count in counts.items():
                into[number] += count

    def facts(self) -> list[SourceFacts]:
        """What the manifest says of them."""
        return [
            SourceFacts(
                path=str(file),
                sha256=self._sha256[number],
                bytes=self._sizes[number],
                examples=self._taken[number],
                refused=self._refused[number],
            )
            for number, (file, _) in enumerate(self._files)
        ]


_CHUNK_BYTES: Final = 256 << 10
_CHUNK_RECORDS: Final = 256
_WORTH_PROCESSES: Final = 2 << 20  # bytes of files; starting a process takes as long as tokenising about that much
