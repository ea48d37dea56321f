"""What generate() returns on request: the sequences and what their tokens were chosen from."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from pixtral.models.outputs import ModelOutput


@dataclasses.dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Fields by attribute, by name and by place, as in Transformers.

    Attributes:
        sequences: (B, S) int64: prompt, new tokens, padding.
        scores: with output_scores, for each step (B, V) float32: what the tokens were chosen from, after penalties and
            filters. Where a sequence has already ended the padding token has 0 and all others -inf: certainty, which
            adds nothing to a sum of log probabilities.
        logits: with output_logits, for each step (B, V) float32 as the model gave them; the same where one has ended.
        finish_reasons: for each sequence "stop" (a stop token, string or criterion) or "length".
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    finish_reasons: tuple[str, ...] | None = None
