"""Keys and values of one layer, as they are or in 8 bits."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from pixtral.ops.memory import empty_huge


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
