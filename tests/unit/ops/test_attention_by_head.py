"""Attention head by head in bfloat16, and the feed-forward block by rows, against their slow twins."""

from __future__ import annotations

import pytest
import torch

from pixtral.models import layers
from pixtral.ops import attention as ops
from pixtral.ops.attention import attention, attention_eager
from pixtral.ops.kv_cache import Packing


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
    attention(*random_qkv(300, 2, 2, torch.float32), packing)
    q, k, v = random_qkv(300, 2, 2, torch.bfloat16)
    attention(q.requires_grad_(), k, v, packing).sum().backward()
    assert q.grad is not None


def test_feed_forward_by_rows_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    block = layers.MLP(24, 40, "silu")
    x = torch.randn(3 * 50 + 7, 24)
    whole = block(x)  # gradients are on: one piece
    monkeypatch.setattr(layers, "MLP_ROWS", 50)
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole, atol=1e-6, rtol=1e-6)
