"""Blocks: who has them, what they hold, in which order they are given away."""

from __future__ import annotations

import pytest

from pixtral.engine.block_manager import (
    ROOT,
    BlockManager,
    block_key,
)
from pixtral.engine.request import ImageInput, Request
from pixtral.engine.sampling_params import SamplingParams

SIZE = 4


def request(ids, images=(), new=()):
    made = Request(SamplingParams(), tuple(ids), len(ids), 99, images=images)
    made.new_ids += new
    return made


def image(start, length, key):
    return ImageInput(start, length, length, key, lambda: None)


def run(pool, one, end):
    """As if the first `end` tokens had been computed."""
    one.blocks += pool.allocate(pool.blocks_for(end) - len(one.blocks))
    one.num_computed = end
    pool.register_full(one)


def test_a_key_names_all_that_a_block_depends_on():
    plain = block_key(ROOT, [1, 2], [])
    others = [
        block_key(plain, [1, 2], []),
        block_key(ROOT, [2, 1], []),
        block_key(ROOT, [1, 2, 3], []),
        block_key(ROOT, [1, 2], [(b"a", 0)]),
        block_key(ROOT, [1, 2], [(b"b", 0)]),
        block_key(ROOT, [1, 2], [(b"a", 1)]),
        block_key(ROOT, [1, 2], [(b"a", -1)]),
        block_key(ROOT, [1, 2], [(b"a", 0), (b"b", 1)]),
        block_key(ROOT, [1, 2], [(b"b", 0), (b"a", 1)]),
    ]
    assert plain == block_key(ROOT, [1, 2], []) and len({plain, *others}) == 10


def test_images_tell_blocks_of_equal_ids_apart():
    ids = [1, 9, 9, 9, 9, 9, 2, 3, 4, 5, 6, 7]
    a, b, plain = (
        BlockManager(0, SIZE).block_keys(request(ids, images), 12)
        for images in ((image(1, 5, b"a"),), (image(1, 5, b"b"),), ())
    )
    assert len({*a, *b, *plain}) == 9  # the block behind the image, too: it has seen it
    assert BlockManager(0, SIZE).block_keys(request([1, 9, 9, 9, 9, 9, 2, 8], (image(1, 5, b"a"),)), 7) == a[:1]


def test_names_go_on_over_prompt_and_answer():
    whole = BlockManager(0, SIZE).block_keys(request([1, 2, 3, 4, 5, 6, 7, 8, 9]), 9)
    assert BlockManager(0, SIZE).block_keys(request([1, 2, 3], new=[4, 5, 6, 7, 8]), 8) == whole


def test_a_prefix_is_found_as_far_as_it_goes():
    pool = BlockManager(8, SIZE)
    first = request(range(10))
    run(pool, first, 10)
    keys = BlockManager(0, SIZE).block_keys(request([*range(8), 99, 99, 99, 99]), 12)
    assert pool.find(keys) == first.blocks[:2]
    assert pool.find(keys[1:]) == first.blocks[1:2] and pool.find(keys[2:]) == []
    pool.check([first.blocks])


def test_what_a_draft_fills_is_not_found():
    pool = BlockManager(8, SIZE)
    one = request([1, 2], new=[3])
    one.draft += [4, 5]
    run(pool, one, 5)
    assert one.num_registered == 0 and pool.find(BlockManager(0, SIZE).block_keys(request([1, 2, 3, 4]), 4)) == []
    one.append(7)  # the draft was wrong
    run(pool, one, 4)
    assert pool.find(BlockManager(0, SIZE).block_keys(request([1, 2, 3, 7]), 4)) == one.blocks[:1]
    assert pool.find(BlockManager(0, SIZE).block_keys(request([1, 2, 3, 4]), 4)) == []


def test_empty_blocks_are_given_away_first_then_the_least_recently_used_and_ends_before_beginnings():
    pool = BlockManager(6, SIZE)
    old, new = request([1] * 8), request([2] * 8)
    run(pool, old, 8)
    run(pool, new, 8)
    tables = [*old.blocks, *new.blocks]
    pool.release_table(old)
    pool.release_table(new)
    again = pool.find(old.block_keys)
    pool.share(again)  # used once more: now the newest
    pool.release(again)
    order = [pool.allocate(1)[0] for _ in range(6)]
    assert order == [4, 5, tables[3], tables[2], tables[1], tables[0]]
    assert pool.find(old.block_keys) == pool.find(new.block_keys) == []
    pool.check([order])


def test_one_of_two_blocks_that_hold_the_same_is_found():
    pool = BlockManager(4, SIZE)
    first, second = request([1] * 4), request([1] * 4)
    run(pool, first, 4)
    run(pool, second, 4)
    assert pool.find(second.block_keys) == first.blocks
    pool.release_table(second)
    pool.release_table(first)
    pool.check([])
    assert pool.allocate(3) and pool.find(first.block_keys) != []


@pytest.mark.parametrize("length", [8, 9])
def test_a_prompt_goes_on_in_two_ways(length):
    pool = BlockManager(8, SIZE)
    leader, follower = request(range(length)), request(range(length))
    run(pool, leader, length)
    own = 1
    copies = pool.fork_table(leader, follower, own)
    assert follower.blocks[:2] == leader.blocks[:2] and follower.num_computed == length
    assert copies == ([(leader.blocks[2], follower.blocks[2])] if length == 9 else [])
    pool.check([leader.blocks, follower.blocks])
    pool.release_table(leader)
    pool.check([follower.blocks])


def test_a_pool_that_grows():
    pool = BlockManager(1, SIZE)
    pool.allocate(1)
    pool.grow(2)
    assert pool.num_free == 2 and pool.allocate(2) == [1, 2]
    with pytest.raises(AssertionError):
        pool.allocate(1)
