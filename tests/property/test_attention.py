"""Packed attention, fast path and slow twin, against a definition that shares no code with either."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from pixtral.ops.attention import attention, attention_eager
from pixtral.ops.kv_cache import KVCache, LayerCache, Packing

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
CLOSE = {"rtol": 0.0, "atol": 2e-6}


@dataclasses.dataclass(frozen=True)
class Heads:
    """Query heads, key heads and channels, with random rows for them."""

    query: int
    key: int
    dim: int
    seed: int

    def rows(self, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of n rows."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = ((n, self.query, self.dim), (n, self.key, self.dim), (n, self.key, self.dim))
        q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        return q, k, v


@st.composite
def heads(draw: st.DrawFn) -> Heads:
    key = draw(st.integers(1, 3))
    return Heads(key * draw(st.integers(1, 3)), key, draw(st.sampled_from([2, 8, 16])), draw(st.integers(0, 99)))


def by_definition(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """One sequence, row by row in float64: softmax(q k / sqrt(D)) v over the keys that the row may see."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for row, head in itertools.product(range(len(q)), range(q.shape[1])):
        seen = len(k) - len(q) + row + 1 if causal else len(k)
        scores = k[:seen, head // group] @ q[row, head] / q.shape[2] ** 0.5
        out[row, head] = torch.softmax(scores, 0) @ v[:seen, head // group]
    return out


def packed_by_definition(qkv: Sequence[Tensor], lens: Sequence[int], *, causal: bool) -> Tensor:
    parts = zip(*(torch.split(x, list(lens)) for x in qkv), strict=True)
    return torch.cat([by_definition(q, k, v, causal=causal) for q, k, v in parts])


def both(q: Tensor, k: Tensor, v: Tensor, packing: Packing, cache: LayerCache | None = None) -> Tensor:
    """The fast path's result, after a look that the slow twin gives the same and leaves the same cache."""
    copy = None if cache is None else LayerCache(*(tensor.clone() for tensor in cache.tensors))
    fast = attention(q, k, v, packing, cache)
    slow, weights = attention_eager(q, k, v, packing, copy)
    assert fast.shape == slow.shape == q.shape and fast.dtype == slow.dtype == q.dtype
    torch.testing.assert_close(fast, slow, **CLOSE)
    assert [w.shape for w in weights] == [
        (q.shape[1], n, m) for n, m in zip(packing.q_lens, packing.kv_lens, strict=True)
    ]
    for weight in weights:
        torch.testing.assert_close(weight.sum(-1), torch.ones(weight.shape[:2]))
    if cache is not None and copy is not None:
        for a, b in zip(cache.tensors, copy.tensors, strict=True):  # slots that nobody wrote may hold NaN
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    return fast


@given(heads(), LENGTHS, st.booleans(), st.booleans())
@example(Heads(4, 2, 8, 0), [5, 5, 5], True, False)
@example(Heads(4, 2, 8, 0), [1, 1], True, False)
@example(Heads(4, 4, 8, 0), [0, 0, 3], False, False)
@example(Heads(4, 4, 8, 0), [0, 0], False, False)
@example(Heads(4, 4, 8, 0), [9, 1, 1, 1, 1, 1], True, True)
def test_whole_sequences(heads: Heads, lens: list[int], causal: bool, gradients: bool) -> None:
    q, k, v = heads.rows(sum(lens))
    with torch.set_grad_enabled(gradients):
        out = both(q, k, v, Packing.full(lens, causal=causal))
    torch.testing.assert_close(out.double(), packed_by_definition((q, k, v), lens, causal=causal), **CLOSE)


@given(heads(), LENGTHS, st.booleans())
def test_gradients(heads: Heads, lens: list[int], causal: bool) -> None:
    assume(sum(lens) > 0)
    packing = Packing.full(lens, causal=causal)
    found = []
    for run in (attention, attention_eager):
        leaves = [x.requires_grad_() for x in heads.rows(sum(lens))]
        q, k, v = leaves
        out: Any = run(q, k, v, packing)
        out = out[0] if isinstance(out, tuple) else out
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        found.append(torch.autograd.grad((out * weight).sum(), leaves))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


@given(heads(), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=5), st.booleans())
@example(Heads(6, 2, 8, 1), [(1, 5), (4, 0), (3, 2), (1, 0), (0, 4), (0, 0)], True)
def test_pages_of_any_order(heads: Heads, sequences: list[tuple[int, int]], causal: bool) -> None:
    """Decode, whole prompts and parts of prompts mixed in one call, over slots scattered as a paged cache has them."""
    new, old = [n for n, _ in sequences], [m for _, m in sequences]
    totals = [n + m for n, m in sequences]
    q, k, v = heads.rows(sum(totals))
    pool = torch.randperm(sum(totals) + 7, generator=torch.Generator().manual_seed(heads.seed))
    tables = torch.split(pool[: sum(totals)], totals)
    poison = torch.full((len(pool), heads.key, heads.dim), 1e4)  # in unused slots
    cache = LayerCache(poison, poison.clone())
    starts = [sum(totals[:i]) for i in range(len(totals))]
    fresh = [torch.arange(start + m, start + m + n) for start, n, m in zip(starts, new, old, strict=True)]
    for start, table, m in zip(starts, tables, old, strict=True):
        cache.keys[table[:m]], cache.values[table[:m]] = k[start : start + m], v[start : start + m]
    rows = torch.cat(fresh)
    slots = torch.cat([table[m:] for table, m in zip(tables, old, strict=True)])
    packing = Packing(tuple(new), tuple(totals), causal, slots, tables)
    out = both(q[rows], k[rows], v[rows], packing, cache)
    expected = [
        by_definition(q[r], k[start : start + total], v[start : start + total], causal=causal)
        for r, start, total in zip(fresh, starts, totals, strict=True)
    ]
    torch.testing.assert_close(out.double(), torch.cat(expected), **CLOSE)


@given(heads(), st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=4))
@example(Heads(4, 2, 8, 0), [[5, 1, 1, 1], [3, 2, 0, 1], [0, 0, 4, 1]])
def test_any_split_into_steps(heads: Heads, schedule: list[list[int]]) -> None:
    """Row i of the schedule: how many tokens of sequence i each step takes. All steps together = all at once."""
    totals = [sum(steps) for steps in schedule]
    q, k, v = heads.rows(sum(totals))
    whole = packed_by_definition((q, k, v), totals, causal=True)
    cache = KVCache(1, heads.key, heads.dim, len(schedule), 1, torch.float32, "cpu")
    done = [sum(totals[:i]) for i in range(len(totals))]
    for step in range(4):
        lens = [steps[step] for steps in schedule]
        rows = torch.cat([torch.arange(start, start + n) for start, n in zip(done, lens, strict=True)])
        packing = cache.packing(lens)
        out = both(q[rows], k[rows], v[rows], packing, cache.layers[0])
        cache.advance(lens)
        torch.testing.assert_close(out.double(), whole[rows], **CLOSE)
        done = [start + n for start, n in zip(done, lens, strict=True)]
    assert cache.lengths == totals


@given(heads(), LENGTHS, st.booleans())
def test_bfloat16(heads: Heads, lens: list[int], causal: bool) -> None:
    q, k, v = heads.rows(sum(lens), torch.bfloat16)
    packing = Packing.full(lens, causal=causal)
    expected = packed_by_definition((q, k, v), lens, causal=causal)
    for out in (attention(q, k, v, packing), attention_eager(q, k, v, packing)[0]):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)


@given(heads(), LENGTHS, st.integers(0, 5), st.booleans())
def test_a_sequence_does_not_see_its_neighbours(heads: Heads, lens: list[int], index: int, causal: bool) -> None:
    index %= len(lens)
    q, k, v = heads.rows(sum(lens))
    before = torch.split(attention(q, k, v, Packing.full(lens, causal=causal)), lens)
    start, stop = sum(lens[:index]), sum(lens[: index + 1])
    for x in (q, k, v):
        x[start:stop] = 1e3  # enough to drown anything that reads it
    after = torch.split(attention(q, k, v, Packing.full(lens, causal=causal)), lens)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert i == index or torch.equal(a, b)


@pytest.mark.parametrize("causal", [True, False])
def test_a_cache_of_another_dtype(causal: bool) -> None:
    q, k, v = Heads(4, 2, 8, 0).rows(6)
    cache = LayerCache(torch.zeros(6, 2, 8, dtype=torch.bfloat16), torch.zeros(6, 2, 8, dtype=torch.bfloat16))
    packing = Packing((6,), (6,), causal, torch.arange(6), (slice(0, 6),))
    out = both(q, k, v, packing, cache)
    expected = by_definition(q, k.bfloat16(), v.bfloat16(), causal=causal)
    torch.testing.assert_close(out.double(), expected, **CLOSE)


@pytest.mark.parametrize("lens", [(300,), (257, 257), (300, 20, 513)])
@pytest.mark.parametrize("causal", [True, False])
def test_long_sequences_in_bfloat16(lens: tuple[int, ...], causal: bool) -> None:
    """Long enough for the kernels that are chosen by size; values as large as trained networks have them."""
    q, k, v = Heads(4, 2, 64, 0).rows(sum(lens))
    q *= 3
    packing = Packing.full(lens, causal=causal)
    exact = attention_eager(q, k, v, packing)[0]
    q, k, v = (x.bfloat16() for x in (q, k, v))
    slow = attention_eager(q, k, v, packing)[0]
    fast = attention(q, k, v, packing)
    assert fast.dtype == torch.bfloat16 and fast.shape == slow.shape

    def rms(x: Tensor) -> float:
        return x.square().mean().sqrt().item()

    assert rms(slow.float() - exact) < 0.02 * rms(exact)
    assert rms(fast.float() - exact) < 1.5 * rms(slow.float() - exact)
