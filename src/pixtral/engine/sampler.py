"""The sampler: one token for every continuation whose logits are there, by its own parameters and random numbers."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pixtral.engine.outputs import TokenLogprobs
from pixtral.engine.request import REQUEST_ERRORS, Guide, Request
from pixtral.engine.sampling_ops import draw, greedy_tokens
from pixtral.errors import GenerationError


class SamplingState:
    """What sampling remembers of one continuation: its random numbers, the tokens that it holds, its grammar.

    Attributes:
        plain: its scores are the model's logits, unchanged.
    """

    def __init__(self, request: Request, guide: Guide | None = None) -> None:
        self.request = request
        self.params = request.params
        self.guide = guide
        self.plain = self.params.plain and guide is None
        self._generator: torch.Generator | None = None
        self._counts: collections.Counter[int] = collections.Counter()  # of the answer
        self._seen: dict[int, None] = {}  # prompt and answer
        if self.params.repetition_penalty != 1:
            self._seen = dict.fromkeys(request.prompt_ids)

    def uniform(self) -> float:
        """The next random number of this continuation alone, in [0, 1)."""
        if self._generator is None:
            seed = self.params.seed
            if seed is None:
                seed = int.from_bytes(os.urandom(8), "little", signed=True)
            self._generator = seeded_generator(seed, self.request.index)
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def add(self, token: int) -> None:
        """Account for a sampled token."""
        if self.params.presence_penalty or self.params.frequency_penalty:
            self._counts[token] += 1
        if self.params.repetition_penalty != 1:
            self._seen[token] = None
        if self.guide is not None:
            self.guide.advance(token)

    def adjust(self, scores: Tensor) -> None:
        """Apply penalties, biases, the minimum length and the grammar in place to (V,) float32 logits."""
        params = self.params
        if self._seen:
            # with embeddings as the prompt, ids may lie outside the vocabulary
            ids = _indices((token for token in self._seen if token < len(scores)), scores)
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


@dataclasses.dataclass(frozen=True)
class SampledToken:
    """The token sampled for one continuation, or why none could be."""

    token: int = -1
    logprobs: TokenLogprobs | None = None
    error: Exception | None = None


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
    """One token for each row.

    Args:
        logits: (R, V) in the model's dtype; may be overwritten.
        states: R continuations.
    """
    # the maximum is found in any number format
    easy = all(state.plain and state.params.greedy and state.params.logprobs is None for state in states)
    scores = logits if easy else logits.float()
    logprobs = _logprobs(scores, states)
    errors: dict[int, Exception] = {}
    if not all(state.plain for state in states):
        if scores is logits or logprobs:
            scores = scores.clone()
        for row, state in enumerate(states):
            if not state.plain:
                try:
                    state.adjust(scores[row])
                except REQUEST_ERRORS as error:
                    errors[row] = error
    best, chosen = greedy_tokens(scores)
    tokens: list[int] = chosen.tolist()
    for row, value in enumerate(best.tolist()):
        if not math.isfinite(value) and row not in errors:
            errors[row] = GenerationError(
                f"the scores have {value} as their best value, so no token can be chosen; the grammar forbids every "
                "token, or the model's weights or inputs are broken (NaN)"
            )
    drawn = [row for row, state in enumerate(states) if not state.params.greedy and row not in errors]
    if drawn:
        uniforms = torch.tensor([states[row].uniform() for row in drawn], dtype=torch.float64, device=scores.device)
        some = scores if len(drawn) == len(states) else scores[drawn]
        for row, token in zip(drawn, draw(some, [states[row].params for row in drawn], uniforms).tolist(), strict=True):
            tokens[row] = token
    sampled = []
    for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
        if row not in errors:
            try:
                state.add(token)
            except REQUEST_ERRORS as error:
                errors[row] = error
        if row in errors:
            sampled.append(SampledToken(error=errors[row]))
        else:
            found = _token_logprobs(logprobs[row], token, state.params.logprobs) if row in logprobs else None
            sampled.append(SampledToken(token, found))
    return sampled


def seeded_generator(seed: int, copy: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of the `copy`-th continuation (from 0) of one prompt; distant seeds for different copies."""
    generator = torch.Generator(device=device)
    # an odd multiplier (2**64 / golden ratio) is a bijection of 64-bit integers: no two copies share a seed
    mixed = (seed + copy * 0x9E3779B97F4A7C15) % 2**64
    generator.manual_seed(mixed - 2**64 if mixed >= 2**63 else mixed)
    return generator


def _logprobs(scores: Tensor, states: Sequence[SamplingState]) -> dict[int, Tensor]:
    """(V,) of each row that asked for log probabilities."""
    rows = [row for row, state in enumerate(states) if state.params.logprobs is not None]
    if not rows:
        return {}
    return dict(zip(rows, scores[rows].log_softmax(-1).unbind(), strict=True))


def _token_logprobs(logprobs: Tensor, token: int, count: int | None) -> TokenLogprobs:
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, ids = logprobs.topk(min(count, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs[token]), top)


def _indices(tokens: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=like.device)
