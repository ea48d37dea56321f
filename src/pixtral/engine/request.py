"""What the engine works on: a prompt, a sequence on its way, and what one step gave."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.engine.sampling import SamplingParams
from pixtral.errors import PromptError

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, image features already in their places.

    Attributes:
        embeds: (S, C) in the model's dtype, S >= 1.
        ids: the S token ids, for penalties, stop strings and prompt lookup; empty when only embeddings are known.
        image_token: the id at whose places the features of images stand.
    """

    embeds: Tensor
    ids: tuple[int, ...] = ()
    image_token: int | None = None


@dataclasses.dataclass
class SequenceState:
    """One continuation of a prompt.

    Attributes:
        length: prompt tokens and new tokens together.
        limit: new tokens at most; the context's end is taken into account.
        generator: of its own draws, if it has a seed.
        finish_reason: None while it runs; "stop" (a stop token, string or criterion) or "length".
        stop_reason: the token id or the string that ended it, if one did.
    """

    params: SamplingParams
    prompt_ids: tuple[int, ...]
    length: int
    limit: int
    generator: torch.Generator | None
    new_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step gave to the R sequences that were running.

    Attributes:
        rows: R indices into `Generation.sequences`.
        tokens: R new token ids.
        scores: (R, V) float32, what the tokens were chosen from: logits after penalties, custom edits and filters.
        logits: (R, V) float32 as the model gave them.
    """

    rows: list[int]
    tokens: list[int]
    scores: Tensor
    logits: Tensor


def context_length(config: MistralConfig) -> int:
    """Tokens that a sequence may have, prompt and answer together."""
    window = config.sliding_window  # beyond it attention would be another one than is implemented; Pixtral has none
    return config.max_position_embeddings if window is None else min(config.max_position_embeddings, window)


def check_prompt_length(index: int, length: int, config: MistralConfig) -> int:
    """How many new tokens have room behind the `index`-th prompt.

    Raises:
        PromptError: the prompt is empty or fills the context.
    """
    context = context_length(config)
    if length == 0:
        raise PromptError(f"prompt {index} is empty, expected at least one token; start with the BOS token")
    if length >= context:
        raise PromptError(
            f"prompt {index} has {length} tokens, the context of the model is {context}, new tokens included; "
            "shorten the text or make the images smaller"
        )
    return context - length
