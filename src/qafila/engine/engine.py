"""Many requests, one model: requests go in, every step computes some tokens of all of them, tokens come out."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qafila.engine.adapters import Adapters
from qafila.engine.blocks import BlockPool, root_key
from qafila.engine.handle import Handle
from qafila.engine.request import GrammarSpec, Request
from qafila.engine.runner import BLOCK_TOKENS, Float32, Runner
from qafila.engine.sampler import Sampler
from qafila.engine.scheduler import Proposer, Scheduler
from qafila.engine.stats import EngineStats
from qafila.engine.step_arrays import StepArrays
from qafila.engine.stream import Matcher, Stream
from qafila.engine.validation import check_request
from qafila.errors import QafilaError, UsageError

if TYPE_CHECKING:
    from qafila.text.tokenizer import Tokenizer


class Engine:
    """Generates for many requests at once.

    Whoever iterates over a `Handle` drives the engine for all; several threads may do so at once. A request's tokens
    are the same whatever else is under way.

    Args:
        runner: the model; the engine closes it.
        tokenizer: of the model; grammars need it.
        stop_ids: tokens that may end an answer where its grammar lets it end, beside the tokenizer's EOS.
        max_running: most answers that are under way at once; by default as many as the runner has rows for.
        proposer: guesses tokens ahead for the one answer to the request it is given (which has a seed); None for never.
        grammar: compiles a grammar to a maker of matchers, one for each answer; raises `QafilaError`. By default
            `GrammarCompiler` over the tokenizer.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        tokenizer: Tokenizer | None = None,
        stop_ids: Collection[int] = (),
        max_running: int | None = None,
        proposer: Callable[[Request], Proposer | None] | None = None,
        grammar: Callable[[GrammarSpec], Callable[[], Matcher]] | None = None,
    ) -> None:
        most = min(runner.max_tokens, runner.max_rows)
        if max_running is not None and max_running < 1:
            raise UsageError(f"max_running must be 1 or more, not {max_running!r}")
        self.runner = runner
        self.pool = BlockPool(runner.num_blocks)
        self._scheduler: Scheduler[Stream] = Scheduler(
            self.pool,
            max_tokens=runner.max_tokens,
            max_rows=runner.max_rows,
            max_running=most if max_running is None else min(most, max_running),
        )
        self._arrays = StepArrays()
        self._sampler = Sampler()
        self._proposer, self._grammar = proposer, grammar
        self._tokenizer, self._stop_ids = tokenizer, frozenset(stop_ids)
        self.adapters = Adapters(runner)
        self._changed = threading.Condition()
        # The thread that steps; 0 for none. One that Ctrl-C interrupted in the wrong moment may take up its own again.
        self._stepper = 0
        self._closed = False
        self._inbox: deque[tuple[Stream, ...]] = deque()
        self._cancelled: deque[Handle] = deque()
        self._live: dict[Handle, tuple[Stream, ...]] = {}
        self._serial = 0
        self._steps = 0

    def submit(self, request: Request) -> Handle:
        """Check a request and let it wait for its turn.

        Raises:
            ContextLengthError: the prompt can never fit.
            QafilaError: anything else that is wrong with it.
        """
        limit = check_request(request, self.runner.config, self.pool.num_blocks * BLOCK_TOKENS)
        matcher = self._compile(request.grammar)
        seed = secrets.randbits(64) if request.seed is None else request.seed
        handle = Handle(self, request, seed)
        with self._changed:
            if self._closed:
                raise UsageError("the engine is closed")
            adapter = self.adapters.find(request.adapter)
            self._serial += 1
            arrival = self._serial
        root = root_key(self.runner.fingerprint, adapter.serial if adapter else 0, request.tenant)
        streams = tuple(
            Stream(
                handle,
                index,
                end=len(request.prompt_ids) + limit,
                root=root,
                adapter=adapter.number if adapter else 0,
                arrival=arrival,
                proposer=self._guesses_for(replace(request, seed=seed, n=1, sample_index=request.sample_index + index)),
                matcher=matcher() if matcher is not None else None,
            )
            for index in range(request.n)
        )
        streams[0].siblings = list(streams[1:])
        with self._changed:
            if self._closed:
                raise UsageError("the engine is closed")
            # Looked up again: it may have gone, and from here on it cannot.
            if self.adapters.find(request.adapter) is not adapter:
                raise UsageError(f"the adapter {request.adapter!r} was replaced; submit the request again")
            if adapter is not None:
                adapter.users += 1
            self._live[handle] = streams
            self._inbox.append(streams)
            self._changed.notify_all()
        return handle

    def step(self) -> bool:
        """Compute one batch, or wait for the one under way in another thread; False if there was nothing to do."""
        with self.exclusively():
            return self._step()

    def stats(self) -> EngineStats:
        """A picture of the present moment."""
        with self._changed:
            running = len(self._scheduler.running)
            unfinished = sum(handle._unfinished for handle in self._live)
            return EngineStats(
                waiting=max(0, unfinished - running),
                running=running,
                blocks=self.pool.num_blocks,
                blocks_used=self.pool.used,
                blocks_cached=self.pool.kept,
                prefix_hit_tokens=self._scheduler.hit_tokens,
                preemptions=self._scheduler.preemptions,
                steps=self._steps,
            )

    def add_adapter(self, name: str, path: Path | str) -> None:
        """Read a PEFT LoRA adapter; requests ask for it by ``name``.

        Raises:
            QafilaError: the name is taken, or the adapter is damaged or made for another model.
        """
        with self.exclusively():
            self.adapters.add(name, Path(path))

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            UsageError: it is not there, or requests under way use it.
        """
        with self.exclusively():
            self.adapters.remove(name)

    def close(self) -> None:
        """Cancel everything and free the model; a second time does nothing."""
        with self.exclusively():
            with self._changed:
                if self._closed:
                    return
                self._closed = True
                self._cancelled.extend(self._live)
            self._take_cancelled()
            self.runner.close()
            # A draft model is closed with the engine that it guesses for.
            close = getattr(self._proposer, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """While it is open no step runs in another thread, and runner and blocks may be used beside requests."""
        me = threading.get_ident()
        try:
            with self._changed:
                while self._stepper not in (0, me):
                    self._changed.wait()
                self._stepper = me
            yield
        finally:
            self._done(me)

    # What a handle calls.

    def _drive(self, handle: Handle) -> None:
        """Step, or wait while another thread does, until the handle has something to give."""
        me = threading.get_ident()
        try:
            with self._changed:
                while self._stepper not in (0, me) and not handle._ready:
                    self._changed.wait()
                if handle._ready:
                    return
                self._stepper = me
            if not self._step() and not handle._ready:
                raise AssertionError("a request is under way that no step computes")
        finally:
            self._done(me)

    def _cancel(self, handle: Handle) -> None:
        with self._changed:
            self._cancelled.append(handle)
            if self._stepper == 0:
                self._take_cancelled()

    def _done(self, me: int) -> None:
        with self._changed:
            if self._stepper == me:
                self._stepper = 0
                self._take_cancelled()
                self._changed.notify_all()

    # One step. Only the stepping thread, or who holds the lock while there is none, gets here.

    def _step(self) -> bool:
        scheduler = self._scheduler
        while self._inbox:
            streams = self._inbox.popleft()
            if not streams[0].handle.finished:
                scheduler.add(streams[0])
        if self._cancelled:
            self._take_cancelled()
        batch = scheduler.plan()
        if not batch:
            return False
        self._steps += 1
        try:
            step = self._arrays.build(batch)
            for stream in batch:
                if stream.matcher is not None and stream.rows:
                    stream.matcher.ask()
            logits_RV = self.runner.logits(step)
        except Exception as error:
            self._fail(batch, error)
            return True
        try:
            self._sample(self._computed(batch), logits_RV)
        except BaseException as error:
            # Half of the batch may have its tokens: none of it can go on.
            self._fail(batch, error)
            if not isinstance(error, Exception):
                raise
        return True

    def _computed(self, batch: list[Stream]) -> list[tuple[Stream, int]]:
        """Move on by what was computed; the answers that get a token now, each with its first row of logits."""
        scheduler = self._scheduler
        first = 0
        sampling = []
        for stream in batch:
            if not stream.guesses:
                scheduler.advance(stream, stream.count)
            if not stream.rows:
                continue
            sampling.append((stream, first))
            if stream.cached is not None:
                stream.handle._cached = stream.cached
            if stream.siblings:
                children, stream.siblings = stream.siblings, []
                for child in children:
                    scheduler.fork(stream, child, self.runner.copy_block)
                    sampling.append((child, first))
            first += stream.rows
        return sampling

    def _sample(self, sampling: list[tuple[Stream, int]], logits_RV: Float32) -> None:
        guessing = [stream for stream, _ in sampling if stream.guesses]
        while sampling:
            places = [row for _, row in sampling]
            whole = len(places) == len(logits_RV) and places == list(range(len(places)))
            for stream, _ in sampling:
                if stream.matcher is not None:
                    try:
                        stream.row.mask = stream.matcher.mask()
                    except Exception as error:
                        # What it is given meanwhile goes to nobody.
                        self._fail([stream], error)
            rows = [stream.row for stream, _ in sampling]
            chosen = self._sampler(logits_RV if whole else np.take(logits_RV, places, axis=0), rows)
            more = []
            for (stream, row), sampled in zip(sampling, chosen, strict=True):
                if stream.handle.finished:
                    continue  # it failed just now, or another answer to the same request did
                if isinstance(sampled, QafilaError):
                    self._fail([stream], sampled)
                    continue
                try:
                    goes_on = stream.take(sampled)
                except Exception as error:
                    self._fail([stream], error)
                    continue
                guesses = stream.guesses
                if not goes_on:
                    if guesses:
                        self._scheduler.advance(stream, 1 + stream.accepted)
                    self._finish(stream)
                elif stream.accepted < len(guesses) and guesses[stream.accepted] == sampled.id:
                    stream.accepted += 1
                    more.append((stream, row + 1))
            sampling = more
        for stream in guessing:
            if stream.blocks:
                self._scheduler.advance(stream, 1 + stream.accepted)
            assert stream.proposer is not None
            stream.proposer.feedback(stream.accepted, len(stream.guesses))
            stream.guesses = ()
            stream.accepted = 0

    # How answers end.

    def _finish(self, stream: Stream) -> None:
        """One answer has its last token."""
        self._scheduler.remove(stream)
        if stream.handle.finished:
            self._forget(stream.handle)

    def _fail(self, batch: Sequence[Stream], error: BaseException) -> None:
        """End the requests of these answers with an error."""
        told = error if isinstance(error, QafilaError) else _told(error)
        for handle in dict.fromkeys(stream.handle for stream in batch):
            self._end(handle, told)

    def _take_cancelled(self) -> None:
        while self._cancelled:
            self._end(self._cancelled.popleft(), None)

    def _end(self, handle: Handle, error: QafilaError | None) -> None:
        if handle not in self._live:
            return
        for stream in self._live[handle]:
            self._scheduler.remove(stream)
        handle._end("error" if error is not None else "cancelled", error)
        self._forget(handle)

    def _forget(self, handle: Handle) -> None:
        with self._changed:
            del self._live[handle]
            adapter = self.adapters.find(handle.request.adapter)
            if adapter is not None:
                adapter.users -= 1

    def _guesses_for(self, request: Request) -> Proposer | None:
        return self._proposer(request) if self._proposer is not None and request.speculate else None

    def _compile(self, spec: GrammarSpec | None) -> Callable[[], Matcher] | None:
        if spec is None:
            return None
        if self._grammar is None:
            if self._tokenizer is None:
                raise UsageError("a grammar needs a tokenizer; give the engine one")
            from qafila.engine.grammar import GrammarCompiler

            self._grammar = GrammarCompiler(
                self._tokenizer, stop_ids=self._stop_ids, vocabulary=self.runner.config.vocab_size
            )
        return self._grammar(spec)


def _told(error: BaseException) -> QafilaError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__
    told = QafilaError(f"the model failed in this step ({reason}); submit the request again")
    told.__cause__ = error
    return told
