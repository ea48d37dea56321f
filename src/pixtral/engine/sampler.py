"""One token for every ready continuation of the engine, each by its own parameters and random numbers."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixtral.engine.outputs import TokenLogprobs
from pixtral.engine.request import REQUEST_ERRORS, Guide, Request
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import GenerationError
from pixtral.ops.native.library import kernels_if_built

# FOLDED pixtral.engine.sampler: What the sampler remembers of one continuation: its random numbers, the tokens that it holds, its grammar.


class Voice:
    """One continuation as the sampler sees it."""

    def __init__(self, request: Request, guide: Guide | None) -> None:
        self.request = request
        self.params = request.params
        self.guide = guide
        self.plain = self.params.plain and guide is None
        self._generator: torch.Generator | None = None
        if not self.params.greedy:
            seed = self.params.seed
            if seed is None:
                seed = int.from_bytes(os.urandom(8), "little", signed=True)
            self._generator = seeded_generator(seed, request.index, "cpu")
        self._counts: collections.Counter[int] = collections.Counter()  # of the answer
        self._seen: dict[int, None] = {}  # prompt and answer
        if self.params.repetition_penalty != 1:
            self._seen = dict.fromkeys(request.prompt_ids)

    def uniform(self) -> float:
        """The next random number of this continuation alone, in [0, 1)."""
        assert self._generator is not None
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def add(self, token: int) -> None:
        """The token was chosen."""
        if self.params.presence_penalty or self.params.frequency_penalty:
            self._counts[token] += 1
        if self.params.repetition_penalty != 1:
            self._seen[token] = None
        if self.guide is not None:
            self.guide.advance(token)

    def adjust(self, scores: Tensor) -> None:
        """Penalties, biases, the minimum length and the grammar, in place on (V,) float32."""
        params = self.params
        if self._seen:
            ids = _indices(self._seen, scores)
            old = scores[ids]
            scores[ids] = torch.where(old < 0, old * params.repetition_penalty, old / params.repetition_penalty)
        if self._counts:
            times = torch.tensor(list(self._counts.values()), dtype=scores.dtype, device=scores.device)
            scores[_indices(self._counts, scores)] -= params.presence_penalty + params.frequency_penalty * times
        for token, bias in params.logit_bias:
            scores[token] += bias
        if len(self.request.new_ids) < params.min_tokens:
            scores[[token for token in params.stop_token_ids if token < len(scores)]] = -torch.inf
        if self.guide is not None:
            self.guide.mask(scores)


def _indices(tokens: dict[int, None] | collections.Counter[int], like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=like.device)


# FOLDED pixtral.engine.sampler: Tokens out of scores, fast on large vocabularies: the likeliest one, or one drawn with given random numbers.


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


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen for one continuation, or why nothing could be."""

    token: int = -1
    logprobs: TokenLogprobs | None = None
    error: Exception | None = None


def sample(logits: Tensor, voices: Sequence[Voice]) -> list[Choice]:
    """One token for each row.

    Args:
        logits: (R, V) in the model's dtype; may be overwritten.
        voices: R continuations.
    """
    # the likeliest is found in any number format
    easy = all(voice.plain and voice.params.greedy and voice.params.logprobs is None for voice in voices)
    scores = logits if easy else logits.float()
    probabilities = _logprobs(scores, voices)
    errors: dict[int, Exception] = {}
    if not all(voice.plain for voice in voices):
        if scores is logits or probabilities:
            scores = scores.clone()
        for row, voice in enumerate(voices):
            if not voice.plain:
                try:
                    voice.adjust(scores[row])
                except REQUEST_ERRORS as error:
                    errors[row] = error
    best, chosen = likeliest(scores)
    tokens: list[int] = chosen.tolist()
    for row, value in enumerate(best.tolist()):
        if not math.isfinite(value) and row not in errors:
            errors[row] = GenerationError(
                f"the scores have {value} as their best value, so no token can be chosen; the grammar forbids every "
                "token, or the model's weights or inputs are broken (NaN)"
            )
    drawn = [row for row, voice in enumerate(voices) if not voice.params.greedy and row not in errors]
    if drawn:
        uniforms = torch.tensor([voices[row].uniform() for row in drawn], dtype=torch.float64, device=scores.device)
        some = scores if len(drawn) == len(voices) else scores[drawn]
        for row, token in zip(drawn, draw(some, [voices[row].params for row in drawn], uniforms).tolist(), strict=True):
            tokens[row] = token
    choices = []
    for row, (voice, token) in enumerate(zip(voices, tokens, strict=True)):
        if row not in errors:
            try:
                voice.add(token)
            except REQUEST_ERRORS as error:
                errors[row] = error
        if row in errors:
            choices.append(Choice(error=errors[row]))
        else:
            found = _describe(probabilities[row], token, voice.params.logprobs) if row in probabilities else None
            choices.append(Choice(token, found))
    return choices


def _logprobs(scores: Tensor, voices: Sequence[Voice]) -> dict[int, Tensor]:
    """(V,) of each row that asked for log probabilities."""
    rows = [row for row, voice in enumerate(voices) if voice.params.logprobs is not None]
    if not rows:
        return {}
    return dict(zip(rows, scores[rows].log_softmax(-1).unbind(), strict=True))


def _describe(logprobs: Tensor, token: int, count: int | None) -> TokenLogprobs:
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, ids = logprobs.topk(min(count, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)


def seeded_generator(seed: int, copy: int, device: torch.device | str) -> torch.Generator:
    """The generator of the `copy`-th continuation (from 0) of one prompt; far seeds for different copies."""
    generator = torch.Generator(device=device)
    # an odd multiplier (2**64 / golden ratio) is a bijection of 64-bit integers: no two copies share a seed
    mixed = (seed + copy * 0x9E3779B97F4A7C15) % 2**64
    generator.manual_seed(mixed - 2**64 if mixed >= 2**63 else mixed)
    return generator
