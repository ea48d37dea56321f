"""Accuracy on held-out images: each question asked alone, an answer right only if every token of it is.

With greedy decoding, an answer comes out exactly when each of its tokens is the most likely one after the tokens
before it. So one forward pass over the right answers shows which of them would have been generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.ops.kv_cache import Packing
from pixtral.training.batches import Batch, Encoder, Stage, make_batch

HELD_OUT_SEED = 2**40
"""Seeds from here on are never used in training."""


@contextlib.contextmanager
def training_precision(bfloat16: bool) -> Iterator[None]:
    """Matrix products in bfloat16 if `bfloat16`, weights and sums in float32.

    The fused attention kernel's backward pass in bfloat16 is several times slower on CPU than the plain one.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def forward(model: LlavaForConditionalGeneration, batch: Batch, bfloat16: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (R, V) float32 where a token of an answer is predicted, and the tower's features (patches, C)."""
    with training_precision(bfloat16):
        seen = model.model.vision_tower.encode(list(batch.pixels))
        embeds = model.embed(batch.ids, [model.model.multi_modal_projector(seen)])
        packing = Packing(q_lens=batch.lengths, kv_lens=batch.lengths, causal=True)
        hidden = model.forward_packed(embeds, batch.positions, packing, None)
        logits = model.logits(hidden[batch.asked])
    return logits.float(), seen


def accuracy(
    model: LlavaForConditionalGeneration,
    encoder: Encoder,
    stage: Stage,
    kinds: Sequence[str],
    images: int,
    *,
    bfloat16: bool = False,
    batch_size: int = 24,
    seed: int = 0,
) -> dict[str, float]:
    """Share of right answers for each kind of question, `images` held-out images like those of `stage` for each."""
    right: dict[str, float] = {}
    for index, kind in enumerate(kinds):
        asking, hits, total = replace(stage, weights={kind: 1.0}, turns=1), 0, 0
        for number in range(-(-images // batch_size)):
            rng = np.random.default_rng([HELD_OUT_SEED, seed, index, number])
            batch = make_batch(encoder, asking, rng, batch_size)
            with torch.inference_mode():
                wrong = forward(model, batch, bfloat16)[0].argmax(-1) != batch.targets
            failed = {row for row, miss in zip(batch.rows, wrong.tolist(), strict=True) if miss}
            asked = [i for i, question in enumerate(batch.questions) if question.kind == kind]
            hits += sum(i not in failed for i in asked)
            total += len(asked)
        right[kind] = hits / max(total, 1)
    return right
