"""4-bit and 8-bit weights: the format, the same in memory and on disk, and how weights are quantized and dequantized.

A linear layer (N out, K in) is cut into groups of `group_size` weights along K:

    value(n, k) = row_scales[n] * scales[n, k // group_size] * level(code(n, k))

With 8 bits the level is code - 128. With 4 bits it is LEVELS4[code]: sixteen levels fitted to groups of 64 Gaussian
weights; they are not symmetric, and the scale is signed, so that each group takes them as they are or mirrored. All
are even, for AVX2 (native/linear_avx2.cpp) multiplies half of them.
Rows go in tiles of 16, N padded with rows of scale zero, and the bytes of a tile lie as the kernels read them.

`quantize_weight` and `dequantize_weight` are operators of torch.library, so that torch.compile and torch.export know
their shapes. They run the native kernels where those are built, else `quantize_reference` and `dequantize_reference`,
which define the result bit by bit.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pixtral.errors import QuantizationError
from pixtral.ops.native.library import kernels

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # dtypes as the native library numbers them
TILE = 16  # rows whose weights lie side by side
LEVELS4 = (-126, -96, -76, -60, -46, -32, -20, -10, 2, 12, 24, 36, 50, 66, 84, 110)
GROUP_SIZES = (32, 64, 128)
ZERO_CODE = {4: 8, 8: 128}  # what weights of scale zero are stored as: the level next to zero
SEARCH_CHUNK = 1 << 21  # weights whose scales `quantize_reference` searches at once

# Where the search puts the largest weight of a group, in levels; beyond the outermost level it is clipped.
_PEAKS = {
    4: (104.0, 110.0, 115.0, 120.0, 126.0, 132.0, 139.0, 147.0, 156.0),
    8: (127.0,),
}
_SIGNS = {4: (1.0, -1.0), 8: (1.0,)}
_SMALLEST = 1e-30  # a group whose largest weight is below this counts as zero


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
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

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and row scales."""
        return self.codes, self.scales, self.row_scales

    def nbytes(self) -> int:
        """Memory that the tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def tiles(self, first: int, last: int) -> QuantizedWeight:
        """The rows of some tiles, on the same memory."""
        rows = min(last * TILE, self.out_features) - first * TILE
        parts = (self.codes[first:last], self.scales[first:last], self.row_scales[first * TILE : last * TILE])
        return QuantizedWeight(self.bits, self.group_size, rows, self.in_features, *parts)

    def check(self) -> None:
        """Raise QuantizationError unless the tensors have the dtypes and shapes of the format."""
        shapes = quantized_shapes(self.bits, self.group_size, self.out_features, self.in_features)
        for name, (dtype, shape) in shapes.items():
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise QuantizationError(
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}, but {self.out_features} x {self.in_features} "
                    f"weights in {self.bits} bits and groups of {self.group_size} have {dtype} {shape}"
                )


def quantized_shapes(
    bits: int, group_size: int, out_features: int, in_features: int
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of each tensor of a QuantizedWeight, by its name."""
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


def quantize_weight(weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """Quantize (N, K) weights of any float dtype, with the scales that leave the smallest squared error.

    Raises:
        QuantizationError: the bits or the group size do not fit, or a weight is NaN or infinite.
    """
    tensors = torch.ops.pixtral.quantize_weight.default(weight, bits, group_size)
    return QuantizedWeight(bits, group_size, weight.shape[0], weight.shape[1], *tensors)


def dequantize_weight(quantized: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The (N, K) weights in `dtype`."""
    numbers = (quantized.bits, quantized.group_size, quantized.out_features)
    weight: Tensor = torch.ops.pixtral.dequantize_weight.default(*quantized.tensors, *numbers, dtype)
    return weight


def quantize_reference(weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """The plain PyTorch version of `quantize_weight`."""
    rows, width = weight.shape
    shapes = quantized_shapes(bits, group_size, rows, width)
    tiles = shapes["codes"][1][0]
    codes = torch.full((tiles * TILE, width), ZERO_CODE[bits], dtype=torch.uint8)
    scales = torch.zeros(tiles * TILE, width // group_size, dtype=torch.int8)
    row_scales = torch.zeros(tiles * TILE)
    step = max(1, SEARCH_CHUNK // max(width, 1))
    for start in range(0, rows, step):
        some = weight[start : start + step].float()
        place = slice(start, start + len(some))
        _refuse_non_finite(some, start)
        codes[place], scales[place], row_scales[place] = _search(some.view(len(some), -1, group_size), bits)
    by_tile = scales.view(tiles, TILE, -1).transpose(1, 2).contiguous()
    return QuantizedWeight(bits, group_size, rows, width, pack_codes(codes, bits), by_tile, row_scales)


def dequantize_reference(quantized: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """(N, K) weights: the plain PyTorch version of `dequantize_weight`."""
    levels = levels_of(unpack_codes(quantized.codes, quantized.bits), quantized.bits)
    scales = quantized.scales.transpose(1, 2).reshape(len(quantized.row_scales), -1).float()
    # scale times level is a whole number below 2^15: only the row's scale rounds
    grouped = levels.view(*scales.shape, quantized.group_size) * scales[..., None] * quantized.row_scales[:, None, None]
    return grouped.view(len(levels), quantized.in_features)[: quantized.out_features].to(dtype)


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


def _refuse_non_finite(weight: Tensor, first_row: int = 0) -> None:
    """Raise with the position of the first NaN or infinity."""
    finite = torch.isfinite(weight)
    if not finite.all():
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise QuantizationError(
            f"weight[{row + first_row}, {column}] is {float(weight[row, column])}; only finite weights can be "
            "quantized, so the checkpoint is damaged or its layer has to be left out"
        )


def _search(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(R, G, g) -> codes (R, K) uint8, scales (R, G) int8, row_scales (R,).

    For each group the scale with the smallest squared error among those that `_PEAKS` and `_SIGNS` suggest, each fitted
    to its codes by least squares; then its two nearest 8-bit values.
    """
    peak = weight.abs().amax(-1)
    empty = peak < _SMALLEST
    peak = torch.where(empty, 1.0, peak)
    unit = weight / peak[..., None]  # in -1 .. 1 from here on, whatever the size of the weights

    best_score = torch.full_like(peak, -1.0)
    best_scale = torch.zeros_like(peak)
    for sign in _SIGNS[bits]:
        for target in _PEAKS[bits]:
            score, scale = _fit(unit, unit * (sign * target), bits)
            better = score > best_score
            best_score = torch.where(better, score, best_score)
            best_scale = torch.where(better, scale, best_scale)
    _, best_scale = _fit(unit, unit / best_scale[..., None], bits)

    wanted = torch.where(empty, 0.0, best_scale * peak)
    row_scales = wanted.abs().amax(-1) / 127
    safe = torch.where(row_scales > 0, row_scales, 1.0)[:, None]
    lower = (wanted.abs() / safe).floor().clamp(1, 127)
    best_error = torch.full_like(peak, float("inf"))
    scales, codes = torch.zeros_like(peak), torch.zeros_like(weight, dtype=torch.uint8)
    for number in (lower, (lower + 1).clamp(max=127)):
        number = torch.where(wanted < 0, -number, number)
        scale = number * safe / peak
        found = _nearest(unit / scale[..., None], bits)
        levels = levels_of(found, bits)
        error = (scale * _sum(levels * levels) - 2 * _sum(unit * levels)) * scale  # up to the sum of squares
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        scales = torch.where(better, number, scales)
        codes = torch.where(better[..., None], found, codes)
    scales = torch.where(empty, 0.0, scales)
    codes = torch.where(empty[..., None], ZERO_CODE[bits], codes)
    return codes.flatten(1), scales.to(torch.int8), row_scales


def _fit(unit: Tensor, wanted: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The least-squares scale of the levels nearest to `wanted`, preceded by how much it reduces the squared error."""
    levels = levels_of(_nearest(wanted, bits), bits)
    product, square = _sum(unit * levels), _sum(levels * levels)
    scale = product / square
    return product * scale, scale


def _nearest(wanted: Tensor, bits: int) -> Tensor:
    """Codes of the levels nearest to `wanted`."""
    if bits == 8:
        return (wanted.round().clamp(-127, 127) + 128).to(torch.uint8)
    levels = torch.tensor(LEVELS4, dtype=torch.float32)
    return torch.bucketize(wanted, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)


def _sum(values: Tensor) -> Tensor:
    """Sum over the last axis in the kernels' order: 16 lanes, vector by vector, then the lanes by halves."""
    lanes = values.view(*values.shape[:-1], -1, 16).unbind(-2)
    total: Tensor = lanes[0]
    for lane in lanes[1:]:
        total = total + lane
    for half in (8, 4, 2, 1):
        total = total[..., :half] + total[..., half : 2 * half]
    return total[..., 0]


def _runs_natively(tensor: Tensor) -> bool:
    return tensor.is_cpu and _function("px_pack") is not None


def _native_quantize(weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    shapes = quantized_shapes(bits, group_size, *weight.shape)
    codes, scales, row_scales = (torch.empty(shape, dtype=dtype) for dtype, shape in shapes.values())
    quantized = QuantizedWeight(bits, group_size, weight.shape[0], weight.shape[1], codes, scales, row_scales)
    if weight.dtype not in NUMBERS:
        weight = weight.float()
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    if codes.numel() == 0:
        row_scales.zero_()
        return quantized
    work = torch.empty(scales.numel())
    function = _function("px_pack")
    assert function is not None
    bad = function(_numbers(weight, quantized), work.data_ptr())
    if bad >= 0:
        row = bad // weight.shape[1]
        _refuse_non_finite(weight[row : row + 1].float(), row)
    return quantized


def _native_dequantize(quantized: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    quantized.check()
    parts = {name: getattr(quantized, name).contiguous() for name in ("codes", "scales", "row_scales")}
    out = torch.empty(quantized.out_features, quantized.in_features, dtype=dtype if dtype in NUMBERS else torch.float32)
    function = _function("px_unpack")
    assert function is not None
    if out.numel():
        function(_numbers(out, dataclasses.replace(quantized, **parts)))
    return out.to(dtype)


def _numbers(dense: Tensor, quantized: QuantizedWeight) -> Any:
    """The argument of px_pack and px_unpack."""
    numbers = (
        dense.data_ptr(),
        NUMBERS[dense.dtype],
        *dense.shape,
        dense.stride(0),
        quantized.bits,
        quantized.group_size,
        torch.get_num_threads(),
        quantized.codes.data_ptr(),
        quantized.scales.data_ptr(),
        quantized.row_scales.data_ptr(),
    )
    return (ctypes.c_int64 * len(numbers))(*numbers)


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    library = kernels()
    if library is None:
        return None
    if name == "px_pack":
        return library.function(name, [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int64)
    return library.function(name, [ctypes.c_void_p])


_LIBRARY: Any = torch.library.Library("pixtral", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("quantize_weight(Tensor weight, int bits, int group_size) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "dequantize_weight(Tensor codes, Tensor scales, Tensor row_scales, int bits, int group_size, int out_features, "
    "ScalarType dtype) -> Tensor"
)


def _quantize(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    run = _native_quantize if _runs_natively(weight) else quantize_reference
    return run(weight, bits, group_size).tensors


def _quantize_fake(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = quantized_shapes(bits, group_size, *weight.shape)
    codes, scales, row_scales = (weight.new_empty(shape, dtype=dtype) for dtype, shape in shapes.values())
    return codes, scales, row_scales


def _dequantize(
    codes: Tensor, scales: Tensor, row_scales: Tensor, bits: int, group_size: int, out_features: int, dtype: torch.dtype
) -> Tensor:
    weight = QuantizedWeight(bits, group_size, out_features, codes.shape[1] * 32 // bits, codes, scales, row_scales)
    return (_native_dequantize if _runs_natively(codes) else dequantize_reference)(weight, dtype)


def _dequantize_fake(
    codes: Tensor, scales: Tensor, row_scales: Tensor, bits: int, group_size: int, out_features: int, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty(out_features, codes.shape[1] * 32 // bits, dtype=dtype)


for _name, _run, _fake in (
    ("quantize_weight", _quantize, _quantize_fake),
    ("dequantize_weight", _dequantize, _dequantize_fake),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pixtral::{_name}", _fake, lib=_LIBRARY)
