"""Scaled dot-product attention over packed sequences: the native kernels, PyTorch's SDPA, and the eager definition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pixtral.ops.attention_native import attends_natively, native_attention
from pixtral.ops.kv_cache import LayerCache, Packing

# Padding sequences of different lengths to one rectangle pays while it adds at most this share of rows.
MAX_PADDING = 0.5
# From this many rows on, attention head by head is faster than SDPA's kernel in bfloat16 on a CPU; it then works on
# about this many scores at a time (1 MiB).
BY_HEAD_MIN_ROWS = 256
BY_HEAD_SCORES = 512 * 1024


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    cache: LayerCache | None = None,
    dropout: float = 0.0,
    *,
    native: bool = True,
) -> Tensor:
    """Scaled dot-product attention in which every sequence attends to itself alone.

    Serves the vision tower (not causal, one sequence per image), training, prompts, parts of prompts (fewer rows than
    keys) and single new tokens, mixed in one call. No mask larger than one sequence's own rows x keys is ever built.
    `attention_eager` is the reference.

    Args:
        q: (N, H, D) queries.
        k: (N, K, D) keys; H is a multiple of K, and each key head serves H / K query heads (arXiv:2305.13245).
        v: (N, K, D) values.
        packing: lengths and places.
        cache: the layer's keys and values; written at `packing.slots` before they are read.
        dropout: probability of dropping an attention weight.
        native: whether the kernels may be used.

    Returns:
        (N, H, D) in q's dtype.
    """
    packing.check(q, k, v, cache)
    if native and dropout == 0.0 and attends_natively(q, k, v, packing, cache):
        return native_attention(q, k, v, packing, cache)
    if cache is not None:
        return _cached(q, k, v, packing, cache)
    lens = packing.q_lens
    if not lens:
        return torch.empty_like(q)
    longest = max(lens)
    if all(n == longest for n in lens):
        return _rectangle((q, k, v), len(lens), packing.causal, dropout)
    if packing.causal and longest * len(lens) <= (1 + MAX_PADDING) * len(q):
        return _padded(q, k, v, lens, longest, dropout)
    # several lengths: sequences of equal length form a batch, and the outputs are put back in order
    segments = [torch.split(x, list(lens)) for x in (q, k, v)]
    pieces: list[Tensor] = [q] * len(lens)
    for n in sorted(set(lens)):
        members = [i for i, m in enumerate(lens) if m == n]
        parts = [torch.cat([x[i] for i in members]) for x in segments]
        group = _rectangle(parts, len(members), packing.causal, dropout)
        for i, piece in zip(members, group.view(len(members), n, *q.shape[1:]), strict=True):
            pieces[i] = piece
    return torch.cat(pieces)


def _sdpa(qkv: Iterable[Tensor], mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """(B, L, H, D) queries on (B, M, K, D) keys and values -> (B, L, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in qkv)
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=gqa)
    return out.transpose(1, 2)


def _rectangle(qkv: Sequence[Tensor], batch: int, causal: bool, dropout: float) -> Tensor:
    """All sequences have one length: a batch without padding."""
    n = len(qkv[0]) // batch
    causal = causal and n > 1
    if not causal and dropout == 0.0 and _by_head_pays(qkv[0], n):
        return torch.cat([_by_head([x[i * n : (i + 1) * n] for x in qkv]) for i in range(batch)])
    parts = (x.reshape(batch, n, *x.shape[1:]) for x in qkv)
    return _sdpa(parts, None, causal, dropout).reshape(qkv[0].shape)


def _by_head_pays(q: Tensor, n: int) -> bool:
    """Whether products of whole heads beat SDPA's kernel: bfloat16 on a CPU, long sequences, no gradients."""
    wanted = q.device.type == "cpu" and q.dtype == torch.bfloat16 and n >= BY_HEAD_MIN_ROWS
    return wanted and not (torch.is_grad_enabled() and q.requires_grad)


def _by_head(qkv: Sequence[Tensor]) -> Tensor:
    """One sequence, head by head and a few hundred rows at a time, so that the scores stay in the cache.

    On CPUs with bfloat16 instructions the plain products run at their peak, which SDPA's kernel does not reach.
    Scores are kept in bfloat16, as Transformers' eager attention does.
    """
    q, k, v = qkv
    repeat = q.shape[1] // k.shape[1]
    q = q * q.shape[-1] ** -0.5
    out = torch.empty_like(q)
    rows = max(64, BY_HEAD_SCORES // len(k))
    for head in range(q.shape[1]):
        keys, values = k[:, head // repeat].t(), v[:, head // repeat]
        for start in range(0, len(q), rows):
            some = slice(start, start + rows)
            out[some, head] = torch.mm(torch.mm(q[some, head], keys).softmax(-1), values)
    return out


def _padded(q: Tensor, k: Tensor, v: Tensor, lens: Sequence[int], longest: int, dropout: float) -> Tensor:
    """Causal sequences of similar lengths, padded at the end where no real row looks."""
    places = torch.cat([torch.arange(i * longest, i * longest + n, device=q.device) for i, n in enumerate(lens)])
    parts = []
    for x in (q, k, v):
        rectangle = x.new_zeros(len(lens) * longest, *x.shape[1:])
        parts.append(rectangle.index_copy(0, places, x).view(len(lens), longest, *x.shape[1:]))
    out = _sdpa(parts, None, True, dropout)
    return out.reshape(len(lens) * longest, *q.shape[1:])[places]


def _cached(q: Tensor, k: Tensor, v: Tensor, packing: Packing, cache: LayerCache) -> Tensor:
    """Write this call's keys and values, then let each sequence read its own."""
    assert packing.slots is not None and packing.tables is not None
    cache.write(packing.slots, k, v)
    out = torch.empty_like(q)
    start = 0
    for n, m, table in zip(packing.q_lens, packing.kv_lens, packing.tables, strict=True):
        if n == 0:  # a sequence without new rows: its keys are not read
            continue
        rows = slice(start, start + n)
        mask = None
        if packing.causal and 1 < n < m:
            # SDPA's own causal mask is aligned to the first key; here the last row sees the last key
            mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        keys, values = cache.read(table, q.dtype)
        out[rows] = _sdpa((q[rows][None], keys[None], values[None]), mask, packing.causal and n == m > 1, 0.0)[0]
        start += n
    return out


def attention_eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    cache: LayerCache | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The definition of `attention`; also returns each sequence's weights, (H, rows, keys) in q's dtype."""
    packing.check(q, k, v, cache)
    if cache is not None:
        assert packing.slots is not None and packing.tables is not None
        cache.write(packing.slots, k, v)
    repeat = q.shape[1] // k.shape[1]
    outs: list[Tensor] = []
    weights: list[Tensor] = []
    start = 0
    for i, (n, m) in enumerate(zip(packing.q_lens, packing.kv_lens, strict=True)):
        rows = slice(start, start + n)
        if cache is None:
            keys, values = k[rows], v[rows]
        else:
            assert packing.tables is not None
            keys, values = cache.read(packing.tables[i], q.dtype)
        keys = keys.repeat_interleave(repeat, dim=1)  # (m, H, D)
        values = values.repeat_interleave(repeat, dim=1)
        scores = torch.einsum("nhd,mhd->hnm", q[rows], keys) * q.shape[-1] ** -0.5
        if packing.causal:
            hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        weight = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        outs.append(torch.einsum("hnm,mhd->nhd", weight, values))
        weights.append(weight)
        start += n
    return torch.cat(outs) if outs else torch.empty_like(q), weights
