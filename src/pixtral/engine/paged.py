"""The tensors behind the blocks: keys and values of every layer, one line of slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pixtral.configuration import MistralConfig
from pixtral.engine.blocks import BlockPool
from pixtral.ops.cache import KVCache


class PagedCache(KVCache):
    """A cache whose slots are handed out in blocks: block b has the slots from b * block_size on.

    Who owns which slot is not known here; packings name slots one by one.
    """

    def __init__(
        self, config: MistralConfig, blocks: BlockPool, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        assert config.head_dim is not None
        slots = blocks.num_blocks * blocks.block_size
        super().__init__(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, 1, slots, dtype, device)
        self.lengths = [slots]  # all of them move when the cache grows
        self.blocks = blocks

    def advance(self, q_lens: Sequence[int]) -> None:
        """Requests count for themselves."""

    def follow(self) -> None:
        """Grow as the pool of blocks has grown."""
        slots = self.blocks.num_blocks * self.blocks.block_size
        if slots > self.capacity:
            self._grow(slots)
            self.lengths = [slots]

    def copy_block(self, source: int, target: int) -> None:
        """The content of one block into another."""
        size = self.blocks.block_size
        for layer in self.layers:
            for tensor in layer.tensors:
                tensor[target * size : (target + 1) * size] = tensor[source * size : (source + 1) * size]
