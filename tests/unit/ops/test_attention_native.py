"""The native attention against its definition: every cache, every head size, prompts, steps and parts of prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixtral.ops.attention import attention, attention_eager
from pixtral.ops.attention_native import attends_natively
from pixtral.ops.kv_cache import LayerCache, Packing, hadamard

needs_kernel = pytest.mark.usefixtures("vector_isa")
NAN, INFINITY = float("nan"), float("inf")
F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
KINDS = [(F32, F32, 3e-6), (BF16, BF16, 6e-3), (BF16, INT8, 2e-2), (F32, INT8, 2e-2)]


def rows(n: int, heads: int, keys: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys with two channels that are large everywhere, and values."""
    k = torch.randn(n, keys, dim)
    k[..., [1, dim // 2]] += 8
    return (torch.randn(n, heads, dim) * 2).to(dtype), k.to(dtype), torch.randn(n, keys, dim).to(dtype)


def error(out: Tensor, expected: Tensor) -> float:
    """Relative, over all numbers."""
    return float((out.float() - expected.float()).norm() / expected.float().norm())


@needs_kernel
@pytest.mark.parametrize(("dtype", "stored", "limit"), KINDS)
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("paged", [False, True])
def test_any_mixture_with_a_cache(dtype: torch.dtype, stored: torch.dtype, limit: float, dim: int, paged: bool) -> None:
    """Sequences of one call: new ones, continued ones, single tokens on long contexts, and one without new rows."""
    torch.manual_seed(dim)
    q_lens, earlier = [1, 7, 0, 40, 1, 13], [300, 0, 5, 260, 1, 700]
    kv_lens = [new + old for new, old in zip(q_lens, earlier, strict=True)]
    order = torch.randperm(sum(kv_lens)) if paged else torch.arange(sum(kv_lens))
    tables: list[slice | Tensor] = list(torch.split(order, kv_lens))
    slots = torch.cat([table[old:] for table, old in zip(torch.split(order, kv_lens), earlier, strict=True)])
    cache = LayerCache.empty(len(order), 2, dim, stored, "cpu")
    before = torch.cat([table[:old] for table, old in zip(torch.split(order, kv_lens), earlier, strict=True)])
    cache.write(before, *rows(len(before), 6, 2, dim, dtype)[1:])
    if not paged:
        tables = [slice(int(table[0]), int(table[0]) + len(table)) for table in tables if isinstance(table, Tensor)]
    packing = Packing(tuple(q_lens), tuple(kv_lens), True, slots, tuple(tables))
    q, k, v = rows(sum(q_lens), 6, 2, dim, dtype)
    twin = LayerCache(*(tensor.clone() for tensor in cache.tensors))
    assert attends_natively(q, k, v, packing, cache)
    out = attention(q, k, v, packing, cache)
    expected, _ = attention_eager(q.float(), k.float(), v.float(), packing, twin)
    assert error(out, expected) < limit
    for ours, theirs in zip(cache.tensors, twin.tensors, strict=True):
        if stored == INT8 and ours.dtype == INT8:  # sums in another order round differently, now and then
            assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours != theirs).float().mean() < 0.02
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@needs_kernel
@pytest.mark.parametrize(("dtype", "limit"), [(F32, 3e-6), (BF16, 6e-3)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lens", [(1,), (257,), (64, 64, 64), (3, 300, 1, 90)])
def test_without_a_cache(dtype: torch.dtype, limit: float, causal: bool, lens: tuple[int, ...]) -> None:
    """Prompts and images; rows may lie apart, as the parts of one projection do."""
    torch.manual_seed(len(lens))
    together = torch.randn(sum(lens), 16, 64).to(dtype)
    q, k, v = together[:, :8], together[:, 8:12], together[:, 12:]
    packing = Packing.full(lens, causal=causal)
    assert attends_natively(q, k, v, packing, None)
    expected, _ = attention_eager(q.float(), k.float(), v.float(), packing)
    assert error(attention(q, k, v, packing), expected) < limit


@needs_kernel
@pytest.mark.parametrize(("heads", "dim"), [(8, 64), (8, 128), (4, 48), (6, 80)])
def test_a_row_is_the_same_however_it_comes(heads: int, dim: int) -> None:
    """Alone, in a prompt, beside others: the same bits."""
    torch.manual_seed(0)
    q, k, v = rows(700, heads, 2, dim, BF16)
    whole = attention(q, k, v, Packing.full([700], causal=True))
    cache = LayerCache.empty(700, 2, dim, BF16, "cpu")
    start = 0
    for n in (500, 1, 1, 150, 48):
        some = slice(start, start + n)
        packing = Packing((n,), (start + n,), True, torch.arange(start, start + n), (slice(0, start + n),))
        assert torch.equal(attention(q[some], k[some], v[some], packing, cache), whole[some])
        start += n


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4])
def test_extreme_scores(size: float) -> None:
    """No NaN: the largest score decides, or all are alike."""
    q, k, v = rows(33, 4, 2, 32, F32)
    packing = Packing.full([33], causal=True)
    out = attention(q * size, k, v, packing)
    torch.testing.assert_close(out, attention_eager(q * size, k, v, packing)[0], rtol=1e-3, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize(("dtype", "stored", "limit"), KINDS)
@pytest.mark.parametrize("count", [5, 300])
def test_a_query_of_zeros(dtype: torch.dtype, stored: torch.dtype, limit: float, count: int) -> None:
    """It sees all keys alike, also where their number does not fill a register or a chunk."""
    q, k, v = rows(count, 4, 2, 64, dtype)
    q[3] = 0
    q[:, 1] = 0
    packing = Packing((count,), (count,), True, torch.arange(count), (slice(0, count),))
    caches = [LayerCache.empty(count, 2, 64, stored, "cpu") for _ in range(2)]
    expected, _ = attention_eager(q.float(), k.float(), v.float(), packing, caches[0])
    assert error(attention(q, k, v, packing, caches[1]), expected) < limit


@needs_kernel
@pytest.mark.parametrize(("dtype", "stored"), [(kind[0], kind[1]) for kind in KINDS])
@pytest.mark.parametrize(("count", "at"), [(1, 0), (5, 3), (300, 3), (300, 270)])
@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize(("of", "value"), [("q", NAN), ("k", NAN), ("v", NAN), ("v", INFINITY)])
def test_no_nan_is_lost(
    dtype: torch.dtype, stored: torch.dtype, count: int, at: int, dim: int, of: str, value: float
) -> None:
    """Whoever sees one gets one: a model that is broken must not answer."""
    parts = dict(zip("qkv", rows(count, 4, 2, dim, dtype), strict=True))
    parts[of][at, 0, 7] = value
    packing = Packing((count,), (count,), True, torch.arange(count), (slice(0, count),))
    q, k, v = parts.values()
    out = attention(q, k, v, packing, LayerCache.empty(count, 2, dim, stored, "cpu"))
    seen = out[at : at + 1, 0] if of == "q" else out[at:, :2]
    assert not seen[..., 7].isfinite().any()
    assert out[:, 2:].isfinite().all()


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_the_transform_is_orthogonal_and_its_own_inverse(dim: int) -> None:
    x, y = torch.randn(5, dim), torch.randn(5, dim)
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    torch.testing.assert_close((hadamard(x) * hadamard(y)).sum(-1), (x * y).sum(-1), rtol=1e-4, atol=1e-4)
