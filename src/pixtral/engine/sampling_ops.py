"""Operations on scores: the likeliest token, filters, and drawing with given random numbers.

`greedy_tokens` and `pick` work in two stages, over blocks of the vocabulary and then inside one of them: sums and
maxima of blocks run at the speed of memory, where argmax, sort and cumulative sums of whole rows do not.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixtral.engine.sampling_params import SamplingParams
from pixtral.ops.native.library import kernels_if_built

BLOCK = 512
CANDIDATES = 64  # looked at first where filters are set


def greedy_tokens(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(R, V) -> the maximum of each row and the first token that has it, (R,) each; NaN if there is one."""
    rows, vocabulary = scores.shape
    if scores.dtype is torch.bfloat16 and scores.is_cpu and scores.is_contiguous() and rows and _native_function():
        return _native_greedy(scores)
    if vocabulary % BLOCK or not rows:
        tokens = scores.argmax(-1)
        return scores.gather(-1, tokens[:, None]).squeeze(1), tokens
    blocks = scores.view(rows, -1, BLOCK)
    best = blocks.amax(-1)
    which = best.argmax(-1)
    everyone = torch.arange(rows, device=scores.device)
    inside = blocks[everyone, which].argmax(-1)
    return best[everyone, which], which * BLOCK + inside


def _native_greedy(scores: Tensor) -> tuple[Tensor, Tensor]:
    function = _native_function()
    assert function is not None
    values = torch.empty(len(scores))
    tokens = torch.empty(len(scores), dtype=torch.int64)
    function(scores.data_ptr(), *scores.shape, tokens.data_ptr(), values.data_ptr(), torch.get_num_threads())
    return values, tokens


@functools.cache
def _native_function() -> Callable[..., None] | None:
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
    """Draw one token for each row: temperature, top-k, top-p and min-p as `warp` applies them, then `pick`.

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


def warp(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Temperature, top-k, top-p and min-p, in the order of Transformers; greedy rows stay as they are.

    The slow twin of what `draw` does to the scores, and what generate() returns as scores.

    Args:
        scores: (R, V) float32; not modified.
        params: R parameters.

    Returns:
        (R, V) float32; tokens that are filtered out have -inf. The likeliest token always stays.
    """
    sampled = [not p.greedy for p in params]
    if any(on and p.temperature != 1 for on, p in zip(sampled, params, strict=True)):
        scores = scores / _column([p.temperature if on else 1.0 for on, p in zip(sampled, params, strict=True)], scores)
    top_k = [p.top_k if on else 0 for on, p in zip(sampled, params, strict=True)]
    if any(top_k):
        scores = _keep_top_k(scores, top_k)
    top_p = [p.top_p if on else 1.0 for on, p in zip(sampled, params, strict=True)]
    if any(share < 1 for share in top_p):
        scores = _keep_top_p(scores, top_p)
    min_p = [p.min_p if on else 0.0 for on, p in zip(sampled, params, strict=True)]
    if any(min_p):
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < _column(min_p, scores) * probs.amax(-1, keepdim=True), -math.inf)
    return scores


def _keep_top_k(scores: Tensor, top_k: Sequence[int]) -> Tensor:
    vocabulary = scores.shape[-1]
    sizes = [min(k, vocabulary) or vocabulary for k in top_k]
    best = scores.topk(max(k for k in sizes if k < vocabulary) if min(sizes) < vocabulary else 1).values
    places = torch.tensor([min(k, best.shape[-1]) - 1 for k in sizes], device=scores.device)
    least = best.gather(-1, places[:, None])
    everything = torch.tensor([k >= vocabulary for k in sizes], device=scores.device)
    return scores.masked_fill((scores < least) & ~everything[:, None], -math.inf)


def _keep_top_p(scores: Tensor, top_p: Sequence[float]) -> Tensor:
    ascending, order = scores.sort(dim=-1)
    drop = ascending.softmax(-1).cumsum(-1) <= _column([1 - share for share in top_p], scores)
    drop[:, -1] = False  # the likeliest token
    drop &= torch.tensor([share < 1 for share in top_p], device=scores.device)[:, None]
    return scores.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
