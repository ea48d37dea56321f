"""The interface between engine and model: the packed forward pass, and the paged key-value cache that it writes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.engine.block_manager import BlockManager
from pixtral.errors import GenerationError
from pixtral.ops.kv_cache import KVCache, Packing

# Prompt tokens in one forward pass: enough to keep a processor busy, few enough to bound the activations.
PREFILL_TOKENS = 4096
# Number formats of the cache, by the names of `GenerationConfig.kv_cache`; None is the model's own.
CACHE_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8}


class PackedModel(Protocol):
    """What the engine needs of a model; the classes in `pixtral.models` have it."""

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, embeddings and cache."""
        ...

    def embed(self, input_ids: Tensor) -> Tensor:
        """(N,) int64 -> (N, C)."""
        ...

    def forward_packed(
        self, embeds: Tensor, positions: Tensor, packing: Packing, cache: KVCache | None, wanted: Tensor | None
    ) -> Tensor:
        """(N, C) embeddings at (N,) positions -> (R, C) hidden states after the final norm, of the rows `wanted`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, C) -> (R, V)."""
        ...


def cache_dtype(kv_cache: str | None, model_dtype: torch.dtype) -> torch.dtype:
    """The number format of keys and values.

    Raises:
        GenerationError: there is none of that name.
    """
    if kv_cache is None:
        return model_dtype
    if kv_cache not in list(CACHE_DTYPES):
        kinds = ", ".join(map(repr, CACHE_DTYPES))
        raise GenerationError(f"kv_cache is {kv_cache!r}, expected {kinds}, or None for the model's dtype")
    return CACHE_DTYPES[kv_cache]


class PagedKVCache(KVCache):
    """A cache whose slots are allocated in blocks: block b has the slots from b * block_size on.

    The block manager knows which request owns which block; packings name slots one by one.
    """

    def __init__(
        self, config: MistralConfig, blocks: BlockManager, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        assert config.head_dim is not None
        slots = blocks.num_blocks * blocks.block_size
        super().__init__(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, 1, slots, dtype, device)
        self.lengths = [slots]  # all of them move when the cache grows
        self.blocks = blocks

    def advance(self, q_lens: Sequence[int]) -> None:
        """Do nothing: requests count their own tokens."""

    def follow(self) -> None:
        """Grow as the number of blocks has grown."""
        slots = self.blocks.num_blocks * self.blocks.block_size
        if slots > self.capacity:
            self._grow(slots)
            self.lengths = [slots]

    def copy_block(self, source: int, target: int) -> None:
        """Copy the content of one block into another."""
        size = self.blocks.block_size
        for layer in self.layers:
            for tensor in layer.tensors:
                tensor[target * size : (target + 1) * size] = tensor[source * size : (source + 1) * size]


def model_version(model: Any) -> int:
    """A hash of what a module computes with: its weights, configuration, modes and hooks.

    Keys and values of another version are those of another model. Writes through `.data` and by fused optimizers change
    neither a tensor's version counter nor its address, so a few numbers of each tensor are part of the hash; a write
    that touches none of them is not noticed.
    """
    parts: list[object] = [id(model), repr(getattr(model, "config", None))]
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        version = 0 if tensor.is_inference() else tensor._version
        parts.append((version, tensor.data_ptr(), tensor.dtype, str(tensor.device)))
        if not tensor.is_meta and tensor.numel():
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 4)][:4]
            parts.append(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for module in model.modules():
        state = vars(module)
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        adapters = (state.get("_active_adapter"), state.get("_disable_adapters"))  # of peft
        parts.append((module.training, hooks, id(state.get("forward")), str(adapters)))
    return hash(tuple(parts))
