"""The block pool against a slow model of itself, and keys that tell everything apart."""

from __future__ import annotations

import random

import pytest

from qafila.engine.blocks import BlockPool, chain_keys, child_key, root_key


def test_blocks_are_given_out_once_and_never_more_than_there_are() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert first is not None
    assert len(set(first)) == 3
    assert pool.allocate(2) is None
    assert pool.available == 1
    pool.release(first)
    assert pool.available == 4
    pool.check()


def test_a_released_full_block_is_found_again_until_its_room_is_needed() -> None:
    pool = BlockPool(3)
    keys = chain_keys(root_key("m"), range(32), 2)
    blocks = pool.allocate(2)
    assert blocks is not None
    for block, key in zip(blocks, keys, strict=True):
        pool.register(block, key)
    pool.release(blocks)
    assert (pool.kept, pool.used, pool.available) == (2, 0, 3)
    assert pool.match(keys) == blocks
    pool.release(blocks)
    # The end of a prefix goes before its beginning: what is left can still be used.
    taken = pool.allocate(2)
    assert taken is not None
    assert pool.match(keys) == blocks[:1]
    pool.check()


def test_the_least_recently_used_prefix_goes_first() -> None:
    pool = BlockPool(2)
    old, new = child_key(root_key("a"), range(16)), child_key(root_key("b"), range(16))
    for key in (old, new):
        blocks = pool.allocate(1)
        assert blocks is not None
        pool.register(blocks[0], key)
        pool.release(blocks)
    pool.release(pool.match([old]))
    assert pool.allocate(1) is not None
    assert pool.match([new]) == []
    assert len(pool.match([old])) == 1


def test_the_first_block_with_a_key_is_the_one_that_is_found() -> None:
    pool = BlockPool(2)
    key = child_key(root_key(), range(16))
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.register(blocks[0], key)
    pool.register(blocks[1], key)
    assert pool.count([key]) == (1, 1)
    pool.release(blocks)
    assert pool.count([key]) == (1, 0)
    assert pool.match([key]) == [blocks[0]]
    pool.check()


def test_clear_forgets_what_nobody_holds() -> None:
    pool = BlockPool(2)
    key = child_key(root_key(), range(16))
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.register(blocks[0], key)
    pool.release(blocks)
    pool.clear()
    assert pool.match([key]) == []
    pool.check()


def test_keys_differ_with_scope_order_and_history() -> None:
    ids = list(range(16))
    keys = {
        child_key(root_key(*scope), tokens)
        for scope in (("m", 0, ""), ("m", 1, ""), ("m", 0, "a"), ("n", 0, ""), ("m", 0, "('m', 0, '')"), ("m,0", ""))
        for tokens in (ids, ids[::-1], [i + (1 << 40) for i in ids])
    }
    assert len(keys) == 18
    assert chain_keys(root_key("m"), ids + ids, 2)[0] != chain_keys(root_key("m"), ids + ids, 2)[1]
    assert chain_keys(root_key("m"), ids + ids, 2)[:1] == chain_keys(root_key("m"), ids, 1)


@pytest.mark.parametrize("seed", range(5))
def test_random_use_keeps_the_books(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(12)
    held: list[list[int]] = []
    for _ in range(400):
        act = rng.randrange(4)
        if act == 0:
            blocks = pool.allocate(rng.randrange(4))
            if blocks is not None:
                held.append(blocks)
        elif act == 1 and held:
            pool.release(held.pop(rng.randrange(len(held))))
        elif act == 2 and held:
            blocks = rng.choice(held)
            pool.share(blocks)
            held.append(list(blocks))
        elif held:
            keys = chain_keys(root_key(), [rng.randrange(2)] * 64, 4)
            for block, key in zip(rng.choice(held), keys, strict=False):
                pool.register(block, key)
            held.append(pool.match(keys))
        pool.check()
        assert pool.used == len({block for blocks in held for block in blocks})
