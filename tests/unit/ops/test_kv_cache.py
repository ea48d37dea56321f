"""The cache of keys and values: what was written is found again after growing, selecting, repeating and cropping."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.ops.kv_cache import KVCache, token_bytes


def cache_of(num_sequences: int, capacity: int, layers: int = 2) -> KVCache:
    return KVCache(layers, 1, 2, num_sequences, capacity, torch.float32, "cpu")


def extend(cache: KVCache, model: list[list[float]], lens: Sequence[int], start: int) -> None:
    """Write a different number for every token, into the cache and into lists."""
    packing = cache.packing(lens)
    assert packing.causal and packing.q_lens == tuple(lens)
    numbers = [float(start + i) for i in range(sum(lens))]
    fresh = torch.tensor(numbers).view(-1, 1, 1).expand(-1, 1, 2)
    for layer, (k, v) in enumerate(each.tensors for each in cache.layers):
        assert packing.slots is not None
        k[packing.slots] = fresh + layer / 10
        v[packing.slots] = -fresh - layer / 10
    for sequence, n in zip(model, lens, strict=True):
        sequence += numbers[:n]
        numbers = numbers[n:]
    assert packing.kv_lens == tuple(map(len, model))
    cache.advance(lens)


def contents(cache: KVCache) -> list[list[float]]:
    """The numbers of each sequence, the same in every layer, key and value."""
    packing = cache.packing([0] * len(cache))
    assert packing.tables is not None
    read: list[Tensor] = []
    for layer, (k, v) in enumerate(each.tensors for each in cache.layers):
        for table in packing.tables:
            assert torch.equal(k[table], -v[table])
        read.append(torch.cat([k[table] for table in packing.tables])[:, 0, 0] - layer / 10)
    torch.testing.assert_close(read[0], read[-1])
    return [part.round().tolist() for part in torch.split(read[0], cache.lengths)]


@given(st.data())
def test_any_sequence_of_operations(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3))
    cache, model = cache_of(count, data.draw(st.integers(0, 3))), [[] for _ in range(count)]
    for step in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["extend", "extend", "select", "repeat", "crop"]))
        if action == "extend":
            extend(cache, model, [data.draw(st.integers(0, 4)) for _ in model], 100 * step)
        elif action == "select":
            chosen = data.draw(st.lists(st.integers(0, len(model) - 1), min_size=1, max_size=4))
            cache = cache.select(chosen, data.draw(st.none() | st.integers(0, 9)))
            model = [list(model[i]) for i in chosen]
        elif action == "repeat" and len(model) < 5:
            cache, model = cache.repeat(2), [list(x) for x in model for _ in range(2)]
        elif action == "crop":
            lengths = [data.draw(st.integers(0, len(x))) for x in model]
            cache.crop(lengths)
            model = [x[:n] for x, n in zip(model, lengths, strict=True)]
        assert cache.lengths == list(map(len, model)) and len(cache) == len(model)
        assert contents(cache) == model


def test_copies_are_apart() -> None:
    cache, model = cache_of(1, 4), [[]]
    extend(cache, model, [2], 0)
    twin = cache.repeat(2)
    extend(twin, [model[0][:], model[0][:]], [1, 1], 50)
    assert cache.lengths == [2] and contents(cache) == [[0.0, 1.0]]
    assert contents(twin) == [[0.0, 1.0, 50.0], [0.0, 1.0, 51.0]]


def test_room_is_made_by_steps_and_not_for_every_token() -> None:
    cache, model, sizes = cache_of(1, 1), [[]], set()
    for i in range(100):
        extend(cache, model, [1], i)
        sizes.add(cache.capacity)
    assert len(sizes) < 15 and cache.capacity < 200
    assert contents(cache) == model


def test_a_step_that_is_not_counted_leaves_no_trace() -> None:
    cache, model = cache_of(2, 1), [[], []]
    extend(cache, model, [3, 1], 0)
    cache.packing([10, 10])
    assert cache.lengths == [3, 1] and contents(cache) == model


def test_facts_about_the_cache() -> None:
    cache = KVCache(3, 2, 8, 2, 10, torch.bfloat16, "cpu")
    assert cache.nbytes == 2 * 3 * 2 * 10 * 2 * 8 * 2
    assert (len(cache), cache.get_seq_length(), cache.device.type) == (2, 0, "cpu")
    cache.advance([4, 7])
    assert cache.get_seq_length() == 7
    assert {x.dtype for layer in cache.layers for x in layer.tensors} == {torch.bfloat16}


def test_misuse() -> None:
    cache = cache_of(2, 4)
    with pytest.raises(AssertionError):
        cache.packing([1])
    with pytest.raises(AssertionError):
        cache.advance([5, 0])
    cache = cache_of(2, 4)
    with pytest.raises(AssertionError):
        cache.crop([1, 0])


def test_no_sequences() -> None:
    cache = cache_of(0, 0)
    packing = cache.packing([])
    assert packing.q_lens == () and packing.slots is not None and len(packing.slots) == 0
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_bytes_of_a_token_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    config = MistralConfig(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=32
    )
    cache = KVCache(3, 2, 8, num_sequences=2, capacity=10, dtype=dtype, device="cpu")
    assert cache.nbytes == 2 * 10 * token_bytes(config, dtype)
