"""The key-value cache, and the packing of sequences, which maps rows to its slots."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.ops.runtime import empty_huge


@dataclasses.dataclass(frozen=True)
class Packing:
    """How N packed rows divide into sequences, and which slots of the cache hold their keys and values.

    Attributes:
        q_lens: rows of each sequence in this call; their sum is N.
        kv_lens: keys that each sequence attends to, those of this call included.
        causal: row i of a sequence sees the keys up to its own place; otherwise all keys of its sequence.
        slots: (N,) int64, with a cache: where the keys and values of this call are written.
        tables: with a cache: for each sequence the slots of its keys in order, as a slice or (kv_len,) int64.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    causal: bool
    slots: Tensor | None = None
    tables: tuple[slice | Tensor, ...] | None = None

    @classmethod
    def full(cls, lens: Sequence[int], *, causal: bool) -> Packing:
        """Whole sequences without a cache: each attends to itself alone."""
        return cls(tuple(lens), tuple(lens), causal)

    def on(self, device: torch.device) -> Packing:
        """The same with its indices on a device."""
        if self.slots is None or self.slots.device == device:
            return self
        tables = tuple(table if isinstance(table, slice) else table.to(device) for table in self.tables or ())
        return dataclasses.replace(self, slots=self.slots.to(device), tables=tables)

    @functools.cached_property
    def places(self) -> tuple[list[int], Tensor | None]:
        """Where each sequence's keys begin: in the cache, or in the table of slots that is given as well.

        Cached, since all layers of a step need it.
        """
        tables = self.tables
        assert tables is not None
        if all(isinstance(table, slice) for table in tables):
            return [table.start or 0 for table in tables if isinstance(table, slice)], None
        slots: list[Tensor] = []
        for table, count in zip(tables, self.kv_lens, strict=True):
            if isinstance(table, slice):
                table = torch.arange(table.start or 0, (table.start or 0) + count)
            slots.append(table)
        starts = list(itertools.accumulate(self.kv_lens[:-1], initial=0))
        return starts, torch.cat(slots).contiguous()

    def check(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache | None) -> None:
        """Assert that the lengths account for every row."""
        assert sum(self.q_lens) == len(q) == len(k) == len(v), (self.q_lens, q.shape, k.shape, v.shape)
        assert len(self.q_lens) == len(self.kv_lens)
        if cache is None:
            assert self.q_lens == self.kv_lens, "keys from earlier calls need a cache"
        else:
            assert self.slots is not None and self.tables is not None, "a cache needs slots and tables"


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Slots for the keys and values of one layer.

    In 8 bits every key head of every slot has a scale of its own. Keys are stored after a Hadamard transform, where
    the head dimension is a power of two: after the rotary embedding a few channels are large in every key and would
    leave few steps to the others. The transform is orthogonal, so queries transformed alike give the same scores
    (QuaRot, arXiv:2404.00456, section 3).

    Attributes:
        keys, values: (slots, K, D), floating-point or int8.
        key_scales, value_scales: (slots, K) float32 for int8, else None.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def empty(cls, slots: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device | str) -> LayerCache:
        """Room for `slots` tokens; nothing is initialised."""
        shape = (slots, heads, dim)
        if torch.device(device).type == "cpu":
            tensors = [empty_huge(shape, dtype) for _ in range(2)]
        else:
            tensors = [torch.empty(shape, dtype=dtype, device=device) for _ in range(2)]
        if dtype == torch.int8:
            tensors += [torch.empty(shape[:2], dtype=torch.float32, device=device) for _ in range(2)]
        return cls(*tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them; the first dimension of each is the slots."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys, self.values
        return self.keys, self.values, self.key_scales, self.value_scales

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def rotated(self) -> bool:
        """Whether keys are stored transformed."""
        dim = self.keys.shape[-1]
        return self.key_scales is not None and dim & (dim - 1) == 0

    def to(self, device: torch.device) -> LayerCache:
        """On another device."""
        return LayerCache(*(tensor.to(device) for tensor in self.tensors))

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values (N, K, D) into slots (N,)."""
        if self.key_scales is None or self.value_scales is None:
            self.keys.index_copy_(0, slots, k.to(self.keys.dtype))
            self.values.index_copy_(0, slots, v.to(self.values.dtype))
            return
        k = hadamard(k.float()) if self.rotated else k.float()
        for x, codes, scales in ((k, self.keys, self.key_scales), (v.float(), self.values, self.value_scales)):
            largest = x.abs().amax(-1)
            factor = torch.where(largest > 0, 127 / largest, 0.0)
            codes.index_copy_(0, slots, (x * factor[..., None]).round().to(torch.int8))
            scales.index_copy_(0, slots, largest / 127)

    def read(self, table: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (M, K, D) of some slots, in `dtype`."""
        keys, values = self.keys[table], self.values[table]
        if self.key_scales is None or self.value_scales is None:
            return keys.to(dtype), values.to(dtype)
        k = keys.float() * self.key_scales[table][..., None]
        v = values.float() * self.value_scales[table][..., None]
        return (hadamard(k) if self.rotated else k).to(dtype), v.to(dtype)


def hadamard(x: Tensor) -> Tensor:
    """The orthogonal Walsh-Hadamard transform of the last dimension, a power of two; it is its own inverse."""
    size = x.shape[-1]
    for _ in range(size.bit_length() - 1):
        even, odd = x[..., 0::2], x[..., 1::2]
        x = torch.cat([even + odd, even - odd], dim=-1)
    return x / math.sqrt(size)


def token_bytes(config: MistralConfig, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one token take in all layers; in 8 bits a float32 scale goes with each head."""
    assert config.head_dim is not None
    head = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


class KVCache:
    """Keys and values of every layer for a fixed number of sequences.

    A sequence owns `capacity` consecutive slots, of which the first `lengths[i]` are filled; there is no padding. A
    slot takes `token_bytes`.

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
        """Of the first layer's tensors."""
        return self.layers[0].keys.device

    def on(self, index: int, device: torch.device) -> LayerCache:
        """A layer's cache, moved to the device where the layer computes, since a model may span several."""
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
        """A cache of the given sequences in that order; repeated ones are copied."""
        capacity = max(capacity or 0, max((self.lengths[i] for i in sequences), default=0))
        num_kv_heads, head_dim = self.layers[0].keys.shape[1:]
        dtype = self.layers[0].keys.dtype
        other = KVCache(len(self.layers), num_kv_heads, head_dim, len(sequences), capacity, dtype, self.device)
        other.lengths = [self.lengths[i] for i in sequences]
        for old_layer, new_layer in zip(self.layers, other.layers, strict=True):
            for old, new in zip(old_layer.tensors, new_layer.tensors, strict=True):
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
        sequences = range(len(self.lengths))
        for index, layer in enumerate(self.layers):
            _, heads, dim = layer.keys.shape
            grown = LayerCache.empty(len(self) * capacity, heads, dim, layer.keys.dtype, layer.keys.device)
            for old, new in zip(layer.tensors, grown.tensors, strict=True):
                self._copy(old, self.capacity, sequences, new, capacity)
            self.layers[index] = grown
        self.capacity = capacity
