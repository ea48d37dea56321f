"""A long context without the minutes of reading it: keys and values of the first tokens are drawn, not computed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.engine.network import PackedModel
from pixtral.ops.attention import Packing
from pixtral.ops.cache import KVCache


class FilledContext:
    """A model for the generation loop, of whose one prompt only the last tokens are run.

    The keys and values of the others are random; what comes after them, and every later step, is the model's own work
    on a cache that is as long and as full as after reading the whole prompt. (The speed does not depend on the values.)
    """

    def __init__(self, model: PackedModel, context: int, computed: int = 1) -> None:
        """
        Args:
            model: does the rest.
            context: tokens of the prompt.
            computed: of them, those at the end that are run, at least one.
        """
        self.model = model
        self.drawn = max(context - max(computed, 1), 0)

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        return self.model.text_config

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, embeddings and cache."""
        return self.model.dtype

    def embed(self, input_ids: Tensor) -> Tensor:
        """(N,) int64 -> (N, C)."""
        return self.model.embed(input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, C) -> (R, V)."""
        return self.model.logits(hidden)

    def forward_packed(
        self, embeds: Tensor, positions: Tensor, packing: Packing, cache: KVCache | None, wanted: Tensor | None
    ) -> Tensor:
        """(N, C) -> (R, C), the rows `wanted`, in their order; those that are not run come back as they are."""
        assert cache is not None and len(packing.q_lens) == 1, "made for one sequence with a cache"
        assert packing.slots is not None
        computed = packing.kv_lens[0] - len(embeds)
        drawn = min(max(self.drawn - computed, 0), len(embeds))
        if drawn == 0:
            return self.model.forward_packed(embeds, positions, packing, cache, wanted)
        _draw(cache, packing.slots[:drawn])
        if wanted is None:
            wanted = torch.arange(len(embeds), device=embeds.device)
        if drawn == len(embeds):
            return embeds[wanted]
        run = wanted[wanted >= drawn] - drawn
        rest = dataclasses.replace(packing, q_lens=(len(embeds) - drawn,), slots=packing.slots[drawn:])
        hidden = self.model.forward_packed(embeds[drawn:], positions[drawn:], rest, cache, run)
        return torch.cat([embeds[wanted[wanted < drawn]], hidden])


def _draw(cache: KVCache, slots: Tensor) -> None:
    """Random keys and values for these slots; drawn once, since layers differ only in where they lie."""
    like = cache.layers[0].keys
    dtype = like.dtype if like.dtype.is_floating_point else torch.float32
    keys, values = (torch.randn(len(slots), *like.shape[1:]).to(like.device, dtype) for _ in range(2))
    for layer in cache.layers:
        layer.write(slots, keys, values)
