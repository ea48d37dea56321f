"""Greedy generation that nobody can doubt: one sequence, no cache, the whole network at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixtral.ops.kv_cache import Packing


@torch.no_grad()
def greedy(model: Any, ids: Sequence[int], images: Sequence[Tensor], new: int, eos: Sequence[int] = ()) -> list[int]:
    """The new tokens after a prompt of ids, whose images are (3, H, W) pixels in order."""
    tokens = list(ids)
    for _ in range(new):
        row = torch.tensor(tokens)
        embeds = model.embed(row, model.encode_images(images)) if images else model.embed(row)
        packing = Packing.full([len(tokens)], causal=True)
        hidden = model.forward_packed(embeds, torch.arange(len(tokens)), packing, None)
        tokens.append(int(model.logits(hidden[-1:])[0].argmax()))
        if tokens[-1] in eos:
            break
    return tokens[len(ids) :]
