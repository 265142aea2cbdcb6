"""Merkle trees as in RFC 6962, section 2.1: one hash stands for all leaves and their order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

#: RFC 6962, section 2.1: leaves and nodes are hashed with different prefixes, so that neither passes for the other.
_LEAF, _NODE = b"\x00", b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(_LEAF + data).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The hash of a tree over leaf hashes; of no leaves, that of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    # Complete subtrees, largest first: a new leaf completes some of them, as a one added to a binary number carries.
    peaks: list[tuple[int, bytes]] = []
    for leaf in leaves:
        size, node = 1, leaf
        while peaks and peaks[-1][0] == size:
            size, node = 2 * size, _node(peaks.pop()[1], node)
        peaks.append((size, node))
    _, found = peaks.pop()
    while peaks:
        found = _node(peaks.pop()[1], found)
    return found


def inclusion(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that prove that leaf ``index`` is in the tree over ``leaves`` (section 2.1.1), from the leaf upwards.

    Raises:
        IndexError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    if len(leaves) == 1:
        return []
    half = _split(len(leaves))
    if index < half:
        return [*inclusion(leaves[:half], index), root(leaves[half:])]
    return [*inclusion(leaves[half:], index - half), root(leaves[:half])]


def root_from_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a proof of inclusion leads to; None for a proof of the wrong length (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size:
        return None
    place, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            node = _node(sibling, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = _node(node, sibling)
        place, last = place >> 1, last >> 1
    return node if last == 0 else None


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()
