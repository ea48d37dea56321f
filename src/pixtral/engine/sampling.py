"""Logits to token ids: one sampler for generate(), chat and the server, with its own parameters for every row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.drawing import pick
from pixtral.engine.params import SamplingParams
from pixtral.errors import GenerationError

__all__ = ["SamplingParams", "choose", "penalize", "seeded_generator", "warp"]


def penalize(logits: Tensor, params: Sequence[SamplingParams], seen: Tensor | None, counts: Sequence[int]) -> Tensor:
    """Repetition penalty and minimum length: what changes greedy choices too.

    Args:
        logits: (R, V) float32, one row per sequence; not modified.
        params: R parameters.
        seen: (R, V) bool, tokens that occur in each sequence so far; may be None when nobody has a penalty.
        counts: how many tokens each sequence has produced.

    Returns:
        (R, V) float32; tokens that may not come have -inf.
    """
    scores = logits
    if any(p.repetition_penalty != 1 for p in params):
        assert seen is not None
        penalty = _column([p.repetition_penalty for p in params], scores)
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    for row, (p, count) in enumerate(zip(params, counts, strict=True)):
        ends = [token for token in p.stop_token_ids if token < scores.shape[-1]]
        if count < p.min_tokens and ends:
            scores = scores.clone() if scores is logits else scores
            scores[row, ends] = -math.inf
    return scores


def warp(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Temperature, top-k, top-p and min-p, in this order (that of Transformers); greedy rows stay as they are.

    Args:
        scores: (R, V) float32; not modified.
        params: R parameters.

    Returns:
        (R, V) float32; tokens that may not come have -inf. The likeliest token always stays.
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


def choose(
    scores: Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator | None],
    *,
    shared: torch.Generator | None = None,
    slots: tuple[Sequence[int], int] | None = None,
) -> Tensor:
    """One token per row: the likeliest for greedy rows, drawn from softmax(scores) for the others.

    Args:
        scores: (R, V) float32, after `penalize` and `warp`.
        params: R parameters.
        generators: for each row its own generator, or None to draw from the shared one.
        shared: the generator of all other rows; None is torch's global one.
        slots: (places, total): the rows without their own generator draw as rows `places` of a batch of `total`, so
            that the noise a row gets does not depend on which of its neighbours are still running. With all rows
            present this is `torch.multinomial(probs, 1)`, so that one torch.manual_seed gives Transformers' tokens.

    Returns:
        (R,) int64

    Raises:
        GenerationError: a row without any possible token, or with NaN.
    """
    chosen = scores.argmax(-1)
    best = scores.gather(-1, chosen[:, None])  # NaN if there is one: argmax finds it
    if not bool(best.isfinite().all()):
        row = int(best.isfinite().logical_not().flatten().nonzero()[0])
        raise GenerationError(
            f"row {row} of the scores has {float(best[row])} as its best value, so no token can be chosen; a logits "
            "processor forbids every token, or the model's weights or inputs are broken (NaN)"
        )
    if all(p.greedy for p in params):
        return chosen
    probs = scores.softmax(-1)
    drawn = [row for row, p in enumerate(params) if not p.greedy]
    for row in drawn:
        generator = generators[row]
        if generator is not None:
            uniform = torch.rand(1, dtype=torch.float64, generator=generator, device=generator.device)
            chosen[row] = pick(probs[row : row + 1], uniform.to(probs.device))[0]
    common = [row for row in drawn if generators[row] is None]
    if common:
        places, total = slots if slots is not None else (range(len(scores)), len(scores))
        everyone = probs.new_full((total, probs.shape[-1]), 1.0)
        everyone[[places[row] for row in common]] = probs[common]
        tokens = torch.multinomial(everyone, 1, generator=shared).squeeze(1)
        chosen[common] = tokens[[places[row] for row in common]]
    return chosen


def seeded_generator(seed: int, copy: int, device: torch.device | str) -> torch.Generator:
    """The generator of the `copy`-th continuation (from 0) of one prompt; far seeds for different copies."""
    generator = torch.Generator(device=device)
    # an odd multiplier (2**64 / golden ratio) is a bijection of 64-bit integers: no two copies share a seed
    mixed = (seed + copy * 0x9E3779B97F4A7C15) % 2**64
    generator.manual_seed(mixed - 2**64 if mixed >= 2**63 else mixed)
    return generator


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
