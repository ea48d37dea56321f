"""How weights become codes and scales: the plain PyTorch version of the search, which defines what is right.

For each group a few scales of both signs are tried, the best is refitted by least squares, all scales of a row are
brought to the int8 grid of that row, and the codes are chosen anew for the scale that they will be read with.
Every sum runs in the order of the kernels (16 lanes, then halves), so that both give the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixtral.errors import QuantizationError
from pixtral.ops.packing import LEVELS4, TILE, ZERO_CODE, PackedWeight, levels_of, pack_codes, packed_shapes

# Where the largest weight of a group may be put, in levels: past the outermost one, it is clipped.
PEAKS = {
    4: (104.0, 110.0, 115.0, 120.0, 126.0, 132.0, 139.0, 147.0, 156.0),
    8: (127.0,),
}
SIGNS = {4: (1.0, -1.0), 8: (1.0,)}
SMALLEST = 1e-30  # a group whose largest weight is below this counts as zero
CHUNK = 1 << 21  # weights that are searched at once


def pack_reference(weight: Tensor, bits: int, group_size: int) -> PackedWeight:
    """The slow twin of `pack`."""
    rows, width = weight.shape
    shapes = packed_shapes(bits, group_size, rows, width)
    tiles = shapes["codes"][1][0]
    codes = torch.full((tiles * TILE, width), ZERO_CODE[bits], dtype=torch.uint8)
    scales = torch.zeros(tiles * TILE, width // group_size, dtype=torch.int8)
    row_scales = torch.zeros(tiles * TILE)
    step = max(1, CHUNK // max(width, 1))
    for start in range(0, rows, step):
        some = weight[start : start + step].float()
        place = slice(start, start + len(some))
        refuse_non_finite(some, start)
        codes[place], scales[place], row_scales[place] = _search(some.view(len(some), -1, group_size), bits)
    by_tile = scales.view(tiles, TILE, -1).transpose(1, 2).contiguous()
    return PackedWeight(bits, group_size, rows, width, pack_codes(codes, bits), by_tile, row_scales)


def refuse_non_finite(weight: Tensor, first_row: int = 0) -> None:
    """Raise with the position of the first NaN or infinity."""
    finite = torch.isfinite(weight)
    if not finite.all():
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise QuantizationError(
            f"weight[{row + first_row}, {column}] is {float(weight[row, column])}; only finite weights can be "
            "quantized, so the checkpoint is damaged or its layer has to be left out"
        )


def _search(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(R, G, g) -> codes (R, K) uint8, scales (R, G) int8, row_scales (R,)."""
    peak = weight.abs().amax(-1)
    empty = peak < SMALLEST
    peak = torch.where(empty, 1.0, peak)
    unit = weight / peak[..., None]  # in -1 .. 1 from here on, whatever the size of the weights

    best_score = torch.full_like(peak, -1.0)
    best_scale = torch.zeros_like(peak)
    for sign in SIGNS[bits]:
        for target in PEAKS[bits]:
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
    """What the codes nearest to `wanted` explain of the squares of `unit`, and the scale with which they do."""
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
    """Over the last axis: 16 lanes one vector after another, then halves."""
    lanes = values.view(*values.shape[:-1], -1, 16).unbind(-2)
    total: Tensor = lanes[0]
    for lane in lanes[1:]:
        total = total + lane
    for half in (8, 4, 2, 1):
        total = total[..., :half] + total[..., half : 2 * half]
    return total[..., 0]
