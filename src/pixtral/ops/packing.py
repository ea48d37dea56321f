"""The format of 4-bit and 8-bit weights, the same in memory and on disk: levels, scales, and the order of the bytes.

A linear layer (N out, K in) is cut into groups of `group_size` weights along K:

    value(n, k) = row_scales[n] * scales[n, k // group_size] * level(code(n, k))

With 8 bits the level is code - 128. With 4 bits it is LEVELS4[code]: sixteen levels fitted to groups of 64 Gaussian
weights; they are not symmetric, and the scale is signed, so that each group takes them as they are or mirrored. All
are even, for AVX2 (native/linear_avx2.cpp) multiplies half of them.
Rows go in tiles of 16, N padded with rows of scale zero, and the bytes of a tile lie as the kernels read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.errors import QuantizationError

TILE = 16  # rows whose weights lie side by side
LEVELS4 = (-126, -96, -76, -60, -46, -32, -20, -10, 2, 12, 24, 36, 50, 66, 84, 110)
GROUP_SIZES = (32, 64, 128)
ZERO_CODE = {4: 8, 8: 128}  # what weights of scale zero are stored as: the level next to zero


@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A linear layer's weights in 4 or 8 bits.

    With B = ceil(out_features / 16) tiles of rows:

    Attributes:
        bits: 4 or 8.
        group_size: weights along K that share a scale.
        out_features: N, without padding.
        in_features: K.
        codes: uint8; 4 bits: (B, K/8, 64), byte [b, p, 4 * lane + j] holds the code of row 16b + lane and column
            8p + j in its low half, of column 8p + 4 + j in its high half, j = 0..3; 8 bits: (B, K/4, 64), byte
            [b, p, 4 * lane + j] is the code of row 16b + lane and column 4p + j.
        scales: (B, K/group_size, 16) int8.
        row_scales: (16 B,) float32.
    """

    bits: int
    group_size: int
    out_features: int
    in_features: int
    codes: Tensor
    scales: Tensor
    row_scales: Tensor

    def nbytes(self) -> int:
        """Memory that the tensors take."""
        return self.codes.nbytes + self.scales.nbytes + self.row_scales.nbytes

    def tiles(self, first: int, last: int) -> PackedWeight:
        """The rows of some tiles, on the same memory."""
        rows = min(last * TILE, self.out_features) - first * TILE
        parts = (self.codes[first:last], self.scales[first:last], self.row_scales[first * TILE : last * TILE])
        return PackedWeight(self.bits, self.group_size, rows, self.in_features, *parts)

    def check(self) -> None:
        """Raise QuantizationError where the tensors are not what the numbers ask for."""
        shapes = packed_shapes(self.bits, self.group_size, self.out_features, self.in_features)
        for name, (dtype, shape) in shapes.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise QuantizationError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}, but {self.out_features} x {self.in_features} "
                    f"weights in {self.bits} bits and groups of {self.group_size} have {dtype} {shape}"
                )


def tensors_of(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and row scales."""
    return weight.codes, weight.scales, weight.row_scales


def packed_shapes(
    bits: int, group_size: int, out_features: int, in_features: int
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of each tensor of a PackedWeight, by its name."""
    if bits not in (4, 8):
        raise QuantizationError(f"weights in {bits!r} bits are not supported; choose 4 or 8")
    if group_size not in GROUP_SIZES or in_features % group_size:
        fits = [size for size in GROUP_SIZES if in_features % size == 0]
        raise QuantizationError(
            f"groups of {group_size!r} weights do not divide {in_features} input features; "
            + (f"choose one of {fits}" if fits else "this layer cannot be quantized")
        )
    tiles = -(-out_features // TILE)
    return {
        "codes": (torch.uint8, (tiles, in_features * bits // 32, 64)),
        "scales": (torch.int8, (tiles, in_features // group_size, TILE)),
        "row_scales": (torch.float32, (tiles * TILE,)),
    }


def choose_group_size(in_features: int, sizes: Sequence[int] = (64, 32)) -> int | None:
    """The first of the sizes that divides the width, None where none does."""
    return next((size for size in sizes if in_features % size == 0), None)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes (16 B, K) uint8 -> the bytes of the format (B, K * bits / 32, 64)."""
    tiles, width = len(codes) // TILE, codes.shape[1]
    quads = codes.view(tiles, TILE, width // 4, 4).permute(0, 2, 1, 3)  # (B, K/4, 16, 4)
    if bits == 4:
        quads = quads[:, 0::2] | (quads[:, 1::2] << 4)
    return quads.reshape(tiles, width * bits // 32, 64)


def unpack_codes(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_codes`."""
    tiles, steps = codes.shape[:2]
    quads = codes.view(tiles, steps, TILE, 4)
    if bits == 4:
        quads = torch.stack([quads & 15, quads >> 4], dim=2).view(tiles, 2 * steps, TILE, 4)
    return quads.permute(0, 2, 1, 3).reshape(tiles * TILE, -1)


def levels_of(codes: Tensor, bits: int) -> Tensor:
    """Codes -> levels, float32."""
    if bits == 8:
        return codes.float() - 128
    return torch.tensor(LEVELS4, dtype=torch.float32, device=codes.device)[codes.long()]


def unpack_reference(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """(N, K) weights: the slow twin of `unpack`."""
    levels = levels_of(unpack_codes(packed.codes, packed.bits), packed.bits)
    scales = packed.scales.transpose(1, 2).reshape(len(packed.row_scales), -1).float()
    # scale times level is a whole number below 2^15: only the row's scale rounds
    grouped = levels.view(*scales.shape, packed.group_size) * scales[..., None] * packed.row_scales[:, None, None]
    return grouped.view(len(levels), packed.in_features)[: packed.out_features].to(dtype)
