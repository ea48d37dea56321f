"""Logits to token ids: one sampler for generate(), chat and the server, with its own parameters for every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pixtral.engine.sampler import pick
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import GenerationError

__all__ = ["SamplingParams", "choose", "penalize", "warp"]


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


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


# FOLDED pixtral.generation.sampling: When a text ends: strings that stop a sequence, found across token borders.


class Decodes(Protocol):
    """The one method of a tokenizer that stop strings need."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of the ids."""
        ...


class StopStrings:
    """Tells whether a stop string ends within the last token of a sequence.

    As in Transformers, the string may begin in the prompt but not lie in it entirely, and it may be followed by other
    characters of the same token. Special tokens count with their names, so that "</s>" can be a stop string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Decodes) -> None:
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        # every token but a special one has at least a byte; the margin absorbs what decoding does to a first token
        self.window = max((len(text.encode()) for text in self.strings), default=0) + 4

    def match(self, ids: Sequence[int]) -> str | None:
        """The stop string that the last of these ids completes, or None."""
        if not self.strings or not ids:
            return None
        tail = list(ids[-self.window :])
        text = self.tokenizer.decode(tail, skip_special_tokens=False)
        before = self.tokenizer.decode(tail[:-1], skip_special_tokens=False).rstrip("\ufffd") if tail[:-1] else ""
        for string in self.strings:
            # the earliest occurrence whose end lies beyond the text that was there before the last token
            if text.find(string, max(0, len(before) - len(string) + 1)) >= 0:
                return string
        return None
