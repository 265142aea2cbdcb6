"""Merkle trees, held to the definition of RFC 6962 and to the test vectors of Certificate Transparency."""

from __future__ import annotations

import hashlib
import random

import pytest

from qafila.agent.merkle import inclusion, leaf_hash, root, root_from_inclusion

# certificate-transparency-go, merkle tree tests: these leaves, and the root after each of them.
LEAVES = [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def plain(leaves: list[bytes]) -> bytes:
    """The definition, as it is written."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + plain(leaves[:half]) + plain(leaves[half:])).digest()


def test_the_published_roots() -> None:
    leaves = [leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]
    assert [root(leaves[:count]).hex() for count in range(1, 9)] == ROOTS
    assert root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100])
def test_every_leaf_is_proven_and_nothing_else(count: int) -> None:
    leaves = [leaf_hash(str(i).encode()) for i in range(count)]
    whole = root(leaves)
    assert whole == plain(leaves)
    draw = random.Random(count)
    for index, leaf in enumerate(leaves):
        path = inclusion(leaves, index)
        assert root_from_inclusion(leaf, index, count, path) == whole
        assert root_from_inclusion(leaf_hash(b"another"), index, count, path) != whole
        other = draw.randrange(count)
        if other != index:
            assert root_from_inclusion(leaf, other, count, path) != whole
        if path:
            assert root_from_inclusion(leaf, index, count, path[:-1]) != whole
        assert root_from_inclusion(leaf, index, count, [*path, leaf]) is None
    with pytest.raises(IndexError):
        inclusion(leaves, count)
    assert root_from_inclusion(leaves[0], count, count, []) is None
