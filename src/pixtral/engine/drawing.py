"""Tokens out of scores, fast on large vocabularies: the likeliest one, or one drawn with given random numbers.

Both work in two stages, over blocks of the vocabulary and then inside one of them: sums and maxima of blocks run at the
memory's speed, where argmax, sort and cumulative sums of whole rows do not.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixtral.engine.params import SamplingParams
from pixtral.ops.native.library import kernels_if_built

BLOCK = 512
CANDIDATES = 64  # that are looked at first where filters are set


def likeliest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(R, V) -> each row's best value and the first token that has it, (R,) each; NaN if there is one."""
    rows, vocabulary = scores.shape
    if scores.dtype is torch.bfloat16 and scores.is_cpu and scores.is_contiguous() and rows and _function():
        return _likeliest(scores)
    if vocabulary % BLOCK or not rows:
        tokens = scores.argmax(-1)
        return scores.gather(-1, tokens[:, None]).squeeze(1), tokens
    blocks = scores.view(rows, -1, BLOCK)
    best = blocks.amax(-1)
    which = best.argmax(-1)
    everyone = torch.arange(rows, device=scores.device)
    inside = blocks[everyone, which].argmax(-1)
    return best[everyone, which], which * BLOCK + inside


def _likeliest(scores: Tensor) -> tuple[Tensor, Tensor]:
    function = _function()
    assert function is not None
    values = torch.empty(len(scores))
    tokens = torch.empty(len(scores), dtype=torch.int64)
    function(scores.data_ptr(), *scores.shape, tokens.data_ptr(), values.data_ptr(), torch.get_num_threads())
    return values, tokens


@functools.cache
def _function() -> Callable[..., None] | None:
    library = kernels_if_built()
    if library is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    return library.function("px_likeliest", [pointer, number, number, pointer, pointer, ctypes.c_int])


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw by inversion, in the order of the columns.

    Args:
        weights: (R, K) float32, not negative, of any sum above 0.
        uniforms: (R,) float64 in [0, 1).

    Returns:
        (R,) int64 columns, each with a weight above 0.
    """
    rows, columns = weights.shape
    if columns <= BLOCK or columns % BLOCK:
        return _pick(weights, uniforms * weights.sum(-1, dtype=torch.float64))
    blocks = weights.view(rows, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64)  # (R, K / BLOCK)
    targets = uniforms * sums.sum(-1)
    which = _pick(sums, targets)
    everyone = torch.arange(rows, device=weights.device)
    before = (sums.cumsum(-1) - sums)[everyone, which]
    return which * BLOCK + _pick(blocks[everyone, which], targets - before)


def _pick(weights: Tensor, targets: Tensor) -> Tensor:
    """The first column up to which the weights sum to more than the target."""
    reached = weights.cumsum(-1, dtype=torch.float64)
    found = (reached <= targets[:, None]).sum(-1)
    # rounding may put a target past the end
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).to(torch.int8).argmax(-1)
    return torch.minimum(found, last)


def draw(scores: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
    """One token for each row: temperature, top-k, top-p and min-p as in `sampling.warp`, then `pick`.

    Args:
        scores: (R, V) float32.
        params: R parameters, none greedy.
        uniforms: (R,) float64 in [0, 1).

    Returns:
        (R,) int64
    """
    scores = scores / _column([p.temperature for p in params], scores)
    tokens = torch.empty(len(params), dtype=torch.int64, device=scores.device)
    free = [row for row, p in enumerate(params) if not (p.top_k or p.top_p < 1 or p.min_p > 0)]
    if free:
        tokens[free] = pick(scores[free].softmax(-1), uniforms[free])
    rows = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    size = max((params[row].top_k for row in rows), default=0)
    size = max(CANDIDATES, size if size <= 8 * CANDIDATES else CANDIDATES)
    while rows:
        size = min(size, scores.shape[-1])
        part, some = scores[rows], [params[row] for row in rows]
        weights, ids, enough = _candidates(part, some, size)
        ids, order = ids.sort(-1)  # in the vocabulary's order, so that how many were looked at changes nothing
        found = ids.gather(-1, pick(weights.gather(-1, order), uniforms[rows])[:, None]).squeeze(1)
        done = enough.tolist()
        tokens[[row for row, ok in zip(rows, done, strict=True) if ok]] = found[enough]
        rows = [row for row, ok in zip(rows, done, strict=True) if not ok]
        size *= 8
    return tokens


def _candidates(scores: Tensor, params: Sequence[SamplingParams], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest `size` tokens of each row: weights (R, size), 0 where a filter drops them; ids; whether they do."""
    vocabulary = scores.shape[-1]
    values, ids = scores.topk(size)
    top_k = torch.tensor([min(p.top_k or vocabulary, vocabulary) for p in params], device=scores.device)
    rank = torch.arange(size, device=scores.device)
    values = values.masked_fill(rank >= top_k[:, None], -math.inf)
    limited = top_k <= size
    total = torch.where(limited, values.logsumexp(-1), scores.logsumexp(-1))
    weights = (values - total[:, None]).exp()
    before = weights.cumsum(-1) - weights
    keep = before < _column([p.top_p for p in params], scores)
    keep &= weights >= _column([p.min_p for p in params], scores) * weights[:, :1]
    keep[:, 0] = True
    enough = limited | ~keep[:, -1]
    if size == vocabulary:
        enough = torch.ones_like(enough)
    return weights * keep, ids, enough


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
