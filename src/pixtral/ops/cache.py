"""Keys and values of earlier tokens: one region per sequence, grown as needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.ops.attention import Packing
from pixtral.ops.layer_cache import LayerCache


class KVCache:
    """Keys and values of every layer for a fixed number of sequences.

    A sequence owns `capacity` consecutive slots, of which the first `lengths[i]` are filled; there is no padding.
    Bytes: 2 * num_layers * num_sequences * capacity * num_kv_heads * head_dim * element size; with dtype torch.int8
    there are 4 more for the scale of every key head and slot, see `LayerCache`.

    Use: `packing = cache.packing(q_lens)`, run the layers with it, then `cache.advance(q_lens)`.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_sequences: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.lengths = [0] * num_sequences
        self.capacity = capacity
        slots = num_sequences * capacity
        self.layers = [LayerCache.empty(slots, num_kv_heads, head_dim, dtype, device) for _ in range(num_layers)]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.layers[0].keys.device

    def on(self, index: int, device: torch.device) -> LayerCache:
        """A layer's cache, brought to where the layer computes: a model may lie on several devices."""
        layer = self.layers[index]
        if layer.keys.device != device:
            self.layers[index] = layer = layer.to(device)
        return layer

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take."""
        return sum(layer.nbytes for layer in self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest sequence (the name that Transformers' caches use)."""
        return max(self.lengths, default=0)

    def packing(self, q_lens: Sequence[int]) -> Packing:
        """Where `q_lens[i]` new tokens of each sequence go; makes room for them."""
        assert len(q_lens) == len(self.lengths), (len(q_lens), len(self.lengths))
        kv_lens = tuple(old + new for old, new in zip(self.lengths, q_lens, strict=True))
        if max(kv_lens, default=0) > self.capacity:
            self._grow(max(max(kv_lens), self.capacity + self.capacity // 2))
        starts = [i * self.capacity for i in range(len(self.lengths))]
        new = [
            torch.arange(start + old, start + old + n)
            for start, old, n in zip(starts, self.lengths, q_lens, strict=True)
        ]
        slots = torch.cat(new).to(self.device) if new else torch.empty(0, dtype=torch.int64, device=self.device)
        tables = tuple(slice(start, start + m) for start, m in zip(starts, kv_lens, strict=True))
        return Packing(tuple(q_lens), kv_lens, True, slots, tables)

    def advance(self, q_lens: Sequence[int]) -> None:
        """Count tokens as filled after the layers have written them."""
        self.lengths = [old + new for old, new in zip(self.lengths, q_lens, strict=True)]
        assert max(self.lengths, default=0) <= self.capacity

    def select(self, sequences: Sequence[int], capacity: int | None = None) -> KVCache:
        """A cache of the given sequences in that order; one may be named several times to continue it several ways."""
        capacity = max(capacity or 0, max((self.lengths[i] for i in sequences), default=0))
        num_kv_heads, head_dim = self.layers[0].keys.shape[1:]
        dtype = self.layers[0].keys.dtype
        other = KVCache(len(self.layers), num_kv_heads, head_dim, len(sequences), capacity, dtype, self.device)
        other.lengths = [self.lengths[i] for i in sequences]
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            for old, new in zip(ours.tensors, theirs.tensors, strict=True):
                self._copy(old, self.capacity, sequences, new, capacity)
        return other

    def repeat(self, n: int) -> KVCache:
        """Every sequence n times, one after another (0, 0, 1, 1 for n = 2)."""
        return self.select([i for i in range(len(self.lengths)) for _ in range(n)], self.capacity)

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget the tokens of each sequence past the given lengths."""
        assert all(new <= old for new, old in zip(lengths, self.lengths, strict=True))
        self.lengths = list(lengths)

    def _copy(self, old: Tensor, old_capacity: int, sequences: Sequence[int], new: Tensor, capacity: int) -> None:
        for place, i in enumerate(sequences):
            n = self.lengths[i]
            new[place * capacity : place * capacity + n] = old[i * old_capacity : i * old_capacity + n]

    def _grow(self, capacity: int) -> None:
        everyone = range(len(self.lengths))
        for index, layer in enumerate(self.layers):
            _, heads, dim = layer.keys.shape
            grown = LayerCache.empty(len(self) * capacity, heads, dim, layer.keys.dtype, layer.keys.device)
            for old, new in zip(layer.tensors, grown.tensors, strict=True):
                self._copy(old, self.capacity, everyone, new, capacity)
            self.layers[index] = grown
        self.capacity = capacity
