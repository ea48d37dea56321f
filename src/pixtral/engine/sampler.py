"""One token for every ready continuation of the engine, each by its own parameters and random numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.drawing import draw, likeliest
from pixtral.engine.output import TokenLogprobs
from pixtral.engine.request import REQUEST_ERRORS
from pixtral.engine.voice import Voice
from pixtral.errors import GenerationError


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
