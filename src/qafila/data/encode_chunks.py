"""Many records at once to tokens, here or in other processes; the same whatever the number of processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import queue
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qafila.data.encode import Document, EncoderSettings, Unit, make_encoder
from qafila.data.examples import parse_record
from qafila.data.problems import ExampleError, Problem, Problems
from qafila.data.records import Record
from qafila.errors import DataError
from qafila.text.chat_format import ChatFormat
from qafila.text.template import TemplateFormat
from qafila.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records that are encoded together.

    Attributes:
        records: in order. files: for each, the number of the file it is from.
        forms: for each file number that occurs, form and fields.
        read: bytes of all files read so far.
    """

    records: list[Record]
    files: list[int]
    forms: Mapping[int, tuple[str, Mapping[str, str]]]
    read: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """The units of a chunk, flat: one array travels faster between processes than thousands.

    Attributes:
        ids: uint32 [tokens]. mask: bool [tokens].
        lengths: int32 [documents]. kinds: uint8 [documents]. margins: float32 [documents].
        sizes: uint8 [units], the documents of each. files: int32 [units]. held: bool [units], held out for validation.
        taken, refused: records by file number.
        problems: of this chunk.
        read: as the chunk's.
    """

    ids: NDArray[np.uint32]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    margins: NDArray[np.float32]
    sizes: NDArray[np.uint8]
    files: NDArray[np.int32]
    held: NDArray[np.bool_]
    taken: Mapping[int, int]
    refused: Mapping[int, int]
    problems: Problems
    read: int

    def units(self) -> Iterator[tuple[Unit, int, bool]]:
        """Unit, number of its file, and whether it is held out."""
        ends = np.cumsum(self.lengths, dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        kinds, margins = self.kinds.tolist(), self.margins.tolist()
        at = 0
        for size, file, held in zip(self.sizes.tolist(), self.files.tolist(), self.held.tolist(), strict=True):
            unit = tuple(
                # Copies: a short document that waits long for its row must not keep the whole chunk in memory.
                Document(
                    self.ids[starts[i] : ends[i]].copy(), self.mask[starts[i] : ends[i]].copy(), kinds[i], margins[i]
                )
                for i in range(at, at + size)
            )
            at += size
            yield unit, file, held


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a process needs to encode chunks.

    Attributes:
        settings, tokenizer, chat: as `make_encoder` takes them.
        held_out: share of the records that are held out for validation.
    """

    settings: EncoderSettings
    tokenizer: Tokenizer
    chat: ChatFormat | None = None
    held_out: float = 0.0

    def dumps(self) -> bytes:
        """For another process."""
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=5).dump(self)
        return buffer.getvalue()


class ChunkEncoder:
    """Encodes chunk after chunk in this process."""

    def __init__(self, plan: Plan) -> None:
        self._held_out = plan.held_out
        self._encoder = make_encoder(plan.settings, plan.tokenizer, plan.chat)

    def encode(self, chunk: Chunk) -> Encoded:
        """The units of all records, in their order."""
        problems = Problems()
        documents: list[Document] = []
        sizes: list[int] = []
        files: list[int] = []
        held: list[bool] = []
        taken: dict[int, int] = {}
        refused: dict[int, int] = {}
        for record, file in zip(chunk.records, chunk.files, strict=True):
            problems.seen += 1
            try:
                units = self._encoder.units(parse_record(record, *chunk.forms[file]))
            except ExampleError as error:
                problems.add(Problem(error.kind, error.origin or record.origin, error.reason))
                refused[file] = refused.get(file, 0) + 1
                continue
            taken[file] = taken.get(file, 0) + 1
            out = self._held_out > 0 and record.share() < self._held_out
            for unit in units:
                documents.extend(unit)
                sizes.append(len(unit))
                files.append(file)
                held.append(out)
        return Encoded(
            ids=np.concatenate([d.ids for d in documents]) if documents else np.zeros(0, np.uint32),
            mask=np.concatenate([d.mask for d in documents]) if documents else np.zeros(0, np.bool_),
            lengths=np.array([len(d) for d in documents], np.int32),
            kinds=np.array([d.kind for d in documents], np.uint8),
            margins=np.array([d.margin for d in documents], np.float32),
            sizes=np.array(sizes, np.uint8),
            files=np.array(files, np.int32),
            held=np.array(held, np.bool_),
            taken=taken,
            refused=refused,
            problems=problems,
            read=chunk.read,
        )


def encode_all(plan: Plan, chunks: Iterable[Chunk], workers: int) -> Iterator[Encoded]:
    """Encode chunks, in their order, by that many other processes; by this one where it is 1.

    Raises:
        DataError: a process died.
    """
    encoder = ChunkEncoder(plan)  # here too: it says what is wrong before any process starts
    if workers <= 1:
        for chunk in chunks:
            yield encoder.encode(chunk)
        return
    with _Pool(plan.dumps(), workers) as pool:
        waiting: deque[int] = deque()
        for number, chunk in enumerate(chunks):
            if len(waiting) >= workers * _AHEAD:
                yield pool.result(waiting.popleft())
            pool.give(number % workers, chunk)
            waiting.append(number % workers)
        while waiting:
            yield pool.result(waiting.popleft())


class _Pool:
    """Processes, each with a queue in and a queue out. Chunks go round in turn, so results come back in order.

    They are started afresh (spawn): a process that has threads, as torch and tokenizers start them, must not be copied.
    """

    def __init__(self, plan: bytes, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._in: list[Any] = [context.Queue() for _ in range(workers)]
        self._out: list[Any] = [context.Queue() for _ in range(workers)]
        self._processes = [
            context.Process(target=_work, args=(plan, self._in[i], self._out[i]), daemon=True) for i in range(workers)
        ]

    def __enter__(self) -> _Pool:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._in:
            if kind is None:
                channel.put(None)
            channel.close()
            if kind is not None:
                channel.cancel_join_thread()
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.join()

    def give(self, worker: int, chunk: Chunk) -> None:
        """Hand out a chunk; never waits."""
        self._in[worker].put(chunk)

    def result(self, worker: int) -> Encoded:
        """Wait for the next result of a process."""
        while True:
            try:
                answer = self._out[worker].get(timeout=1.0)
                break
            except queue.Empty:
                code = self._processes[worker].exitcode
                if code is not None and self._out[worker].empty():
                    raise DataError(
                        f"a process that tokenises died (exit {code}; too little memory?); use fewer workers"
                    ) from None
        if isinstance(answer, str):
            raise RuntimeError(f"in a process that tokenises:\n{answer}")
        assert isinstance(answer, Encoded)
        return answer


def _work(plan: bytes, source: Any, target: Any) -> None:
    """The life of one process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started this one
    try:
        encoder = ChunkEncoder(pickle.loads(plan))  # noqa: S301 - made by this program's own other process
        while (chunk := _next(source)) is not None:
            target.put(encoder.encode(chunk))
    except BaseException:
        target.put(traceback.format_exc())


def _next(source: Any) -> Chunk | None:
    """The next chunk; None at the end, or where the process that gives them is gone."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            chunk: Chunk | None = source.get(timeout=5.0)
            return chunk
        except queue.Empty:
            continue
    os._exit(1)  # nobody reads what is still to be sent


class _Pickler(pickle.Pickler):
    """Pickles tokenizers and chat formats: they hold read-only tables, and a template's compiled form."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, MappingProxyType):
            return _table, (dict(value),)
        if isinstance(value, TemplateFormat):
            return _template, (value.template.source, value.tokenizer)
        return NotImplemented


def _table(content: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(content)


def _template(source: str, tokenizer: Tokenizer) -> TemplateFormat:
    return TemplateFormat(source, tokenizer)


_AHEAD: Final = 3  # chunks that wait for each process
