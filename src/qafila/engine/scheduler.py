"""Which tokens of which answers go into the next step: continuous batching over the paged KV cache."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from qafila.engine.blocks import BlockPool, chain_keys, child_key
from qafila.engine.runner import BLOCK_TOKENS


class Proposer(Protocol):
    """Guesses how one answer goes on. Guesses cost time alone: the answer is the same with any."""

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Up to ``most`` tokens that may follow ``ids`` (prompt and answer so far, not to be changed)."""

    def feedback(self, accepted: int, proposed: int) -> None:
        """How many of the guesses made last were right."""


class Answer:
    """One answer under way: its tokens, and where their keys and values are.

    Attributes:
        ids: the prompt's tokens and those generated; a list that only grows.
        end: length of ``ids`` at which the answer is over.
        computed: tokens whose keys and values are in the cache.
        blocks: block table; a new list whenever the answer is admitted, and from then on it only grows.
        cached: prompt tokens that were found in the cache at the first admission; None before.
        guesses: tokens guessed for this step, after the last of ``ids``.
        count: tokens in this step, guesses included.
        rows: how many of them, the last ones, want logits.
    """

    __slots__ = (
        "_keys",
        "adapter",
        "blocks",
        "cached",
        "computed",
        "count",
        "end",
        "guesses",
        "ids",
        "order",
        "priority",
        "proposer",
        "root",
        "rows",
    )

    def __init__(
        self,
        ids: list[int],
        *,
        end: int,
        root: bytes,
        adapter: int = 0,
        priority: int = 0,
        arrival: tuple[int, int] = (0, 0),
        proposer: Proposer | None = None,
    ) -> None:
        self.ids = ids
        self.end = end
        self.root = root
        self.adapter = adapter
        self.priority = priority
        self.order = (-priority, *arrival)
        self.proposer = proposer
        self.computed = 0
        self.blocks: list[int] = []
        self.cached: int | None = None
        self.guesses: Sequence[int] = ()
        self.count = 0
        self.rows = 0
        self._keys: list[bytes] = []

    def keys(self, full_blocks: int) -> list[bytes]:
        """Keys of at least the first ``full_blocks`` blocks of ``ids``."""
        keys = self._keys
        if len(keys) < full_blocks:
            start = len(keys)
            parent = keys[-1] if keys else self.root
            keys += chain_keys(parent, self.ids[start * BLOCK_TOKENS : full_blocks * BLOCK_TOKENS], full_blocks - start)
        return keys

    def next_key(self) -> bytes:
        """Compute and keep the key of the first block that has none."""
        keys = self._keys
        start = len(keys) * BLOCK_TOKENS
        keys.append(child_key(keys[-1] if keys else self.root, self.ids[start : start + BLOCK_TOKENS]))
        return keys[-1]


A = TypeVar("A", bound=Answer)


def _order(answer: Answer) -> tuple[int, ...]:
    return answer.order


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


class Scheduler(Generic[A]):
    """Waiting and running answers, and the next step's batch.

    Higher priority goes first, then earlier arrival. A running answer holds blocks for all its tokens. When one more
    is needed and none can be had, the last answer in that order gives all of its own back and waits; it is computed
    again later. So the first answer always gets on, and every answer ends.

    Args:
        pool: the KV cache's blocks.
        max_tokens: most tokens of one step.
        max_rows: most rows of logits of one step.
        max_running: most answers that run at once; at most ``max_tokens`` and ``max_rows``.
        max_guesses: most guessed tokens of one answer in a step.
    """

    def __init__(
        self, pool: BlockPool, *, max_tokens: int, max_rows: int, max_running: int, max_guesses: int = 8
    ) -> None:
        assert 0 < max_running <= min(max_tokens, max_rows)
        self.pool = pool
        self.waiting: list[A] = []
        self.running: list[A] = []
        self.hit_tokens = 0
        self.preemptions = 0
        self._max_tokens, self._max_rows, self._max_running = max_tokens, max_rows, max_running
        self._max_guesses = max_guesses
        # Who is computing a prompt's block right now: whoever needs the same one waits for it.
        self._producing: dict[bytes, A] = {}

    def add(self, answer: A) -> None:
        """Let an answer wait for its turn."""
        insort(self.waiting, answer, key=_order)

    def remove(self, answer: A) -> None:
        """Forget an answer, wherever it is, and give its blocks back; one that is not here is none of our business."""
        for queue in (self.running, self.waiting):
            if answer in queue:
                queue.remove(answer)
        self._give_back(answer)

    def plan(self) -> list[A]:
        """The next step's answers, with ``count``, ``rows`` and ``guesses`` set; empty if there is nothing to do."""
        running, pool = self.running, self.pool
        if self.waiting and running:
            self._make_room()
        batch = []
        prompts = bool(self.waiting)
        tokens, rows = self._max_tokens, self._max_rows
        index = 0
        while index < len(running):
            answer = running[index]
            index += 1
            if len(answer.ids) - answer.computed != 1:
                prompts = True
                continue
            if answer.computed >= len(answer.blocks) * BLOCK_TOKENS and not self._grow(answer):
                continue
            answer.count = answer.rows = 1
            answer.guesses = ()
            batch.append(answer)
        tokens -= len(batch)
        rows -= len(batch)
        # Guesses may slow prompts down, but not keep them out: each needs a row in the end.
        most = tokens // 2 if prompts else tokens
        kept = len(running) - len(batch) + bool(self.waiting)
        for answer in batch:
            if answer.proposer is not None:
                spent = self._guess(answer, min(most, rows - kept))
                most -= spent
                tokens -= spent
                rows -= spent
        if prompts:
            self._read_prompts(batch, tokens, rows)
        assert batch or not self.waiting, "answers wait although nothing runs"
        assert pool.available >= 0
        return batch

    def advance(self, answer: A, tokens: int) -> None:
        """Count ``tokens`` of an answer's ``ids`` as computed (guesses that were right are in ``ids`` by now)."""
        answer.computed += tokens
        full = answer.computed // BLOCK_TOKENS
        keys = answer._keys
        at = (answer.computed - tokens) // BLOCK_TOKENS
        while at < full:
            key = keys[at] if at < len(keys) else answer.next_key()
            self.pool.register(answer.blocks[at], key)
            if self._producing:
                self._producing.pop(key, None)
            at += 1

    def fork(self, parent: A, child: A, copy_block: Callable[[int, int], None]) -> None:
        """Start ``child`` from its parent's cache; with no room to run it waits, and finds full blocks in the cache."""
        full, partial = divmod(parent.computed, BLOCK_TOKENS)
        child._keys = parent._keys[:full]
        child.cached = parent.cached
        if len(self.running) >= self._max_running:
            self.add(child)
            return
        new = self.pool.allocate(1 if partial else 0)
        if new is None:
            self.add(child)
            return
        shared = parent.blocks[:full]
        self.pool.share(shared)
        child.blocks = shared + new
        child.computed = parent.computed
        if partial:
            copy_block(parent.blocks[full], new[0])
        insort(self.running, child, key=_order)

    def _grow(self, answer: A) -> bool:
        """One more block for a running answer; False if the answer itself had to give way."""
        while (new := self.pool.allocate(1)) is None:
            last = self.running[-1]
            self._preempt(last)
            if last is answer:
                return False
        answer.blocks += new
        return True

    def _guess(self, answer: A, room: int) -> int:
        assert answer.proposer is not None
        # The token after the last guess must still belong to the answer, and guesses drive nobody out.
        most = min(self._max_guesses, room, answer.end - len(answer.ids) - 1)
        most = min(most, (len(answer.blocks) + self.pool.available) * BLOCK_TOKENS - len(answer.ids))
        if most <= 0:
            return 0
        try:
            guesses = answer.proposer.propose(answer.ids, most)[:most]
        except Exception:
            # An answer needs no guesses; whatever is wrong with a draft model, it is not this request's fault.
            answer.proposer = None
            return 0
        if not guesses:
            return 0
        missing = _blocks_for(len(answer.ids) + len(guesses)) - len(answer.blocks)
        if missing > 0:
            new = self.pool.allocate(missing)
            assert new is not None
            answer.blocks += new
        answer.guesses = guesses
        answer.count = answer.rows = 1 + len(guesses)
        return len(guesses)

    def _read_prompts(self, batch: list[A], tokens: int, rows: int) -> None:
        """Spend the rest of a step on prompts: running ones first, then those that can be admitted."""
        for answer in self.running:
            todo = len(answer.ids) - answer.computed
            if todo == 1:
                continue
            if tokens == 0:
                return
            tokens, rows = self._take(batch, answer, todo, tokens, rows)
        at = 0
        while tokens > 0 and at < len(self.waiting) and len(self.running) < self._max_running:
            answer = self.waiting[at]
            if self._being_computed(answer):
                at += 1
            elif self._admit(answer):
                tokens, rows = self._take(batch, answer, len(answer.ids) - answer.computed, tokens, rows)
            else:
                # Nobody overtakes the first that does not fit, or it would never fit.
                return

    def _take(self, batch: list[A], answer: A, todo: int, tokens: int, rows: int) -> tuple[int, int]:
        count = min(todo, tokens)
        wanted = 1 if count == todo else 0
        if wanted > rows:
            return tokens, rows
        answer.count, answer.rows, answer.guesses = count, wanted, ()
        batch.append(answer)
        return tokens - count, rows - wanted

    def _being_computed(self, answer: A) -> bool:
        """Whether the first block that this answer misses is being computed by another."""
        if not self._producing:
            return False
        full = (len(answer.ids) - 1) // BLOCK_TOKENS
        keys = answer.keys(full)[:full]
        matched = self.pool.count(keys)[0]
        return matched < full and keys[matched] in self._producing

    def _missing(self, answer: A) -> int:
        """How many of the available blocks an answer would take to be admitted."""
        full = (len(answer.ids) - 1) // BLOCK_TOKENS
        return _blocks_for(len(answer.ids)) - self.pool.count(answer.keys(full)[:full])[1]

    def _fits(self, answer: A) -> bool:
        # One block more for each that runs, or the next steps would drive the new one out again.
        reserve = len(self.running)
        return reserve < self._max_running and self._missing(answer) + reserve <= self.pool.available

    def _make_room(self) -> None:
        """Running answers give way to the first waiting one if that has a higher priority."""
        first = self.waiting[0]
        if self._being_computed(first):
            return
        while self.running and self.running[-1].priority < first.priority and not self._fits(first):
            self._preempt(self.running[-1])

    def _admit(self, answer: A) -> bool:
        if not self._fits(answer):
            return False
        # The last token is computed in any case: its logits are wanted.
        full = (len(answer.ids) - 1) // BLOCK_TOKENS
        keys = answer.keys(full)[:full]
        blocks = self.pool.match(keys)
        answer.computed = len(blocks) * BLOCK_TOKENS
        if answer.cached is None:
            answer.cached = answer.computed
            self.hit_tokens += answer.computed
        for key in keys[len(blocks) :]:
            self._producing.setdefault(key, answer)
        new = self.pool.allocate(_blocks_for(len(answer.ids)) - len(blocks))
        assert new is not None
        answer.blocks = blocks + new
        self.waiting.remove(answer)
        insort(self.running, answer, key=_order)
        return True

    def _preempt(self, answer: A) -> None:
        self.running.remove(answer)
        self._give_back(answer)
        self.preemptions += 1
        self.add(answer)

    def _give_back(self, answer: A) -> None:
        if self._producing:
            for key in [key for key, owner in self._producing.items() if owner is answer]:
                del self._producing[key]
        self.pool.release(answer.blocks)
        answer.blocks = []
        answer.computed = 0
