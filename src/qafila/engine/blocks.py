"""The KV cache's blocks: who holds them, which ones hold a known prefix, and which go first when memory is short."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from qafila.engine.runner import BLOCK_TOKENS

_KEY_BYTES = 32


def root_key(*scope: object) -> bytes:
    """The key before a sequence's first block: prefixes are shared only under an equal scope.

    Args:
        scope: what a prefix's keys and values depend on or may not leave: the runner's fingerprint, the adapter, the
            tenant.
    """
    return hashlib.blake2b(repr(scope).encode(), digest_size=_KEY_BYTES).digest()


def child_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a full block after the blocks named by ``parent``; 256 bits, so equal keys mean equal tokens."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=_KEY_BYTES).digest()


def chain_keys(root: bytes, token_ids: Sequence[int], full_blocks: int) -> list[bytes]:
    """Keys of the first ``full_blocks`` blocks of a sequence."""
    keys = []
    for start in range(0, full_blocks * BLOCK_TOKENS, BLOCK_TOKENS):
        root = child_key(root, token_ids[start : start + BLOCK_TOKENS])
        keys.append(root)
    return keys


class BlockPool:
    """``num_blocks`` blocks with reference counts, and a cache of full blocks by what they hold.

    A block is free (nobody knows what it holds), held (at least one sequence refers to it) or kept (nobody refers to
    it, but its key is known). Kept blocks are given away, least recently used first, when no free one is left.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._by_key: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Blocks that could be had now."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks that sequences refer to."""
        return self.num_blocks - self.available

    @property
    def kept(self) -> int:
        """Blocks that hold a known prefix and that nobody refers to."""
        return len(self._kept)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` blocks with one reference each; None, and nothing changed, if there are not as many."""
        if count > len(self._free) + len(self._kept):
            return None
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._kept.popitem(last=False)
                self._forget(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each of these held blocks."""
        for block in blocks:
            assert self._references[block] > 0
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each; a sequence's last blocks will be given away before its first ones."""
        for block in reversed(blocks):
            left = self._references[block] - 1
            assert left >= 0
            self._references[block] = left
            if left == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._kept[block] = None

    def register(self, block: int, key: bytes) -> None:
        """Say what a held, full block holds. The first block with a key is the one that is found."""
        assert self._references[block] > 0
        if self._keys[block] is None and key not in self._by_key:
            self._keys[block] = key
            self._by_key[key] = block

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known run of ``keys`` from the first on, with one more reference each."""
        blocks = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            if self._references[block] == 0:
                del self._kept[block]
            self._references[block] += 1
            blocks.append(block)
        return blocks

    def count(self, keys: Sequence[bytes]) -> tuple[int, int]:
        """Length of the longest known run of ``keys``, and how many blocks of it are held already."""
        known = held = 0
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            known += 1
            held += self._references[block] > 0
        return known, held

    def clear(self) -> None:
        """Forget all kept blocks; held ones stay as they are."""
        for block in self._kept:
            self._forget(block)
            self._free.append(block)
        self._kept.clear()

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        del self._by_key[key]
        self._keys[block] = None

    def check(self) -> None:
        """Assert that every block is in exactly one state (for tests)."""
        free, kept = set(self._free), set(self._kept)
        held = {block for block, count in enumerate(self._references) if count}
        assert len(free) == len(self._free)
        assert len(free) + len(kept) + len(held) == self.num_blocks
        assert free | kept | held == set(range(self.num_blocks))
        assert all(self._keys[block] is not None for block in kept)
        assert all(self._keys[block] is None for block in free)
        assert {block: key for key, block in self._by_key.items()} == {
            block: key for block, key in enumerate(self._keys) if key is not None
        }
