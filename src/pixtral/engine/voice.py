"""What the sampler remembers of one continuation: its random numbers, the tokens that it holds, its grammar."""

from __future__ import annotations

import collections
import os

import torch
from torch import Tensor

from pixtral.engine.request import Guide, Request
from pixtral.engine.sampling import seeded_generator


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
