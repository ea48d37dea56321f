"""Packed attention at its edges and head by head; what it computes is in tests/property/test_attention.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pixtral.layers import blocks
from pixtral.ops import attention as ops
from pixtral.ops.attention import attention, attention_eager
from pixtral.ops.kv_cache import LayerCache, Packing


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation inside it returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return out


def rows(n: int, heads: int = 2, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, n, heads, dim).unbind()
    return q, k, v


@pytest.mark.parametrize("lens", [[], [0], [0, 0, 0]])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing(lens: list[int], causal: bool) -> None:
    assert attention(*rows(0), Packing.full(lens, causal=causal)).shape == (0, 2, 8)
    out, weights = attention_eager(*rows(0), Packing.full(lens, causal=causal))
    assert out.shape == (0, 2, 8) and len(weights) == len(lens)


def test_a_packing_does_not_change() -> None:
    packing = Packing.full([1, 2], causal=True)
    assert packing.q_lens == packing.kv_lens == (1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        packing.causal = False  # type: ignore[misc]


@pytest.mark.parametrize("run", [attention, attention_eager])
@pytest.mark.parametrize(
    "packing",
    [
        Packing((2, 2), (2, 2), True),  # does not account for all rows
        Packing((5,), (7,), True),  # keys from an earlier call, but no cache
        Packing((2, 3), (5,), True),
    ],
)
def test_lengths_that_do_not_add_up(run, packing: Packing) -> None:
    with pytest.raises(AssertionError):
        run(*rows(5), packing)


@pytest.mark.parametrize("run", [attention, attention_eager])
def test_a_cache_needs_places(run) -> None:
    cache = LayerCache(torch.zeros(5, 2, 8), torch.zeros(5, 2, 8))
    with pytest.raises(AssertionError):
        run(*rows(5), Packing.full([5], causal=True), cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lens", [(300, 300, 300), (300, 310, 290), (280, 12, 500)])
@pytest.mark.parametrize("causal", [True, False])
def test_no_mask_over_several_sequences(lens: tuple[int, ...], causal: bool, dtype: torch.dtype) -> None:
    """Nothing that is made holds as many elements as one sequence's rows x keys for each head, let alone all rows'."""
    q, k, v = (x.to(dtype) for x in rows(sum(lens)))
    with LargestTensor() as seen:
        attention(q, k, v, Packing.full(lens, causal=causal))
    assert seen.largest <= max(2 * max(lens) ** 2, 1.5 * q.numel())
    assert seen.largest < sum(lens) ** 2 / 2


def test_the_spy_sees_a_dense_mask() -> None:
    q, k, v = (x.transpose(0, 1)[None] for x in rows(900))
    with LargestTensor() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, torch.zeros(900, 900))
    assert seen.largest >= 900**2


def test_dropout_drops() -> None:
    """Dropping a half and doubling the rest keeps the mean."""
    q, k, v = rows(64)
    packing = Packing.full([32, 32], causal=False)
    exact = attention(q, k, v, packing)
    drawn = torch.stack([attention(q, k, v, packing, dropout=0.5) for _ in range(200)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), exact, rtol=0, atol=0.3)


def random_qkv(rows: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(rows, n, 16, dtype=dtype) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("lens", [[256], [300, 300], [300, 17, 511]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_by_head_equals_eager(lens: list[int], heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "BY_HEAD_SCORES", 100 * 300)  # several pieces for each head
    used = []
    by_head = ops._by_head
    monkeypatch.setattr(ops, "_by_head", lambda qkv: used.append(len(qkv[0])) or by_head(qkv))
    q, k, v = random_qkv(sum(lens), heads, kv_heads, torch.bfloat16)
    packing = Packing.full(lens, causal=False)
    fast = attention(q, k, v, packing, native=False)
    slow, _ = attention_eager(q.float(), k.float(), v.float(), packing)
    assert sorted(used) == sorted(n for n in lens if n >= ops.BY_HEAD_MIN_ROWS)
    torch.testing.assert_close(fast.float(), slow, atol=2e-2, rtol=2e-2)


def test_not_by_head_where_gradients_or_float32_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_by_head", lambda qkv: pytest.fail("took the path without gradients"))
    packing = Packing.full([300], causal=False)
    q, k, v = random_qkv(300, 2, 2, torch.float32)
    attention(q, k, v, packing)
    q, k, v = random_qkv(300, 2, 2, torch.bfloat16)
    attention(q.requires_grad_(), k, v, packing).sum().backward()
    assert q.grad is not None


def test_feed_forward_by_rows_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    block = blocks.MLP(24, 40, "silu")
    x = torch.randn(3 * 50 + 7, 24)
    whole = block(x)  # gradients are on: one piece
    monkeypatch.setattr(blocks, "MLP_ROWS", 50)
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole, atol=1e-6, rtol=1e-6)
