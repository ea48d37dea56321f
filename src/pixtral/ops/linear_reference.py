"""Quantized linear layers in plain PyTorch: the reference that the kernels reproduce, and the fallback without them.

With 8-bit activations, integer sums are exact within an activation group, and float32 sums run over the groups in
order. The layers on dequantized weights (activations as they are), and the gradients, dequantize some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pixtral.ops.quantized_weight import TILE, QuantizedWeight, dequantize_weight, levels_of, unpack_codes

ACTIVATION_GROUP = 128  # columns of the activations that share a scale
SMALLEST = 1e-30  # a group whose largest activation is below this counts as zero
BLOCK = 1 << 24  # products that are held at once
DEQUANTIZED = 1 << 26  # weights that are dequantized at once


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) -> int8 (M, K) and one float32 scale per row and group of 128 columns, (M, ceil(K / 128)).

    A group with a NaN or an infinity gets the scale NaN, so that the outputs of its row are NaN.
    """
    rows, width = x.shape
    groups = -(-width // ACTIVATION_GROUP)
    padded = F.pad(x.float(), (0, groups * ACTIVATION_GROUP - width)).view(rows, groups, ACTIVATION_GROUP)
    peak = padded.abs().amax(-1)
    finite = torch.isfinite(peak)
    empty = ~finite | (peak < SMALLEST)
    inverse = torch.where(empty, 0.0, torch.full_like(peak, 127) / peak)  # `127 / peak` would round twice
    levels = (padded * inverse[..., None]).round().nan_to_num(0.0)
    scales = torch.where(empty, 0.0, peak * (1 / 127)).masked_fill(~finite, float("nan"))
    return levels.to(torch.int8).view(rows, -1)[:, :width], scales


def linear_reference(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """x (M, K) -> (M, N) in x's dtype: the plain PyTorch version of `linear` for one weight."""
    return _product(x, weight, bias).to(x.dtype)


def gated_linear_reference(x: Tensor, gate: QuantizedWeight, up: QuantizedWeight) -> Tensor:
    """silu(x gate^T) * (x up^T), (M, N): the plain PyTorch version of `gated_linear`."""
    return (F.silu(_product(x, gate, None)) * _product(x, up, None)).to(x.dtype)


def _product(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """(M, N) float32, a few rows of x and a few tiles of weights at a time."""
    levels, scales = quantize_activations(x)
    out = torch.empty(len(x), len(weight.row_scales), device=x.device)
    rows = 256
    tiles = max(1, BLOCK // (TILE * max(weight.in_features, min(len(x), rows) * weight.scales.shape[1], 1)))
    for first in range(0, len(weight.codes), tiles):
        some = slice(first, first + tiles)
        columns = slice(first * TILE, (first + tiles) * TILE)
        weights = levels_of(unpack_codes(weight.codes[some], weight.bits), weight.bits)
        weights = weights.view(len(weights), -1, weight.group_size).permute(1, 2, 0)  # (G, g, n)
        numbers = weight.scales[some].transpose(1, 2).reshape(weights.shape[2], -1).t()  # (G, n)
        for start in range(0, len(x), rows):
            place = slice(start, start + rows)
            grouped = levels[place].float().view(-1, *weights.shape[:2]).transpose(0, 1)  # (G, m, g)
            exact = torch.bmm(grouped, weights).int() * numbers.int()[:, None]  # (G, m, n)
            out[place, columns] = _sum_groups(exact, scales[place], ACTIVATION_GROUP // weight.group_size)
    out = out[:, : weight.out_features].double() * weight.row_scales[: weight.out_features].double()
    return (out if bias is None else out + bias.double()).float()  # rounds once, like a fused multiply-add


def _sum_groups(exact: Tensor, scales: Tensor, ratio: int) -> Tensor:
    """(G, m, n) whole numbers, `ratio` of them to an activation group, times scales (m, groups) -> (m, n)."""
    total = torch.zeros(exact.shape[1:], device=exact.device)
    for group, column in enumerate(scales.unbind(1)):
        whole = exact[group * ratio : (group + 1) * ratio].sum(0, dtype=torch.int32)
        total = (whole.float().double() * column.double()[:, None] + total.double()).float()
    return total


def dequantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """x (M, K) -> (M, N) in x's dtype, without rounding x."""
    out = x.new_empty(len(x), weight.out_features)
    for rows, part in _parts(weight, x.dtype):
        out[:, rows] = F.linear(x, part, None if bias is None else bias[rows].to(x.dtype))
    return out


def dequantized_gated_linear(x: Tensor, gate: QuantizedWeight, up: QuantizedWeight) -> Tensor:
    """silu(x gate^T) * (x up^T), without rounding x."""
    return F.silu(dequantized_linear(x, gate)) * dequantized_linear(x, up)


def linear_gradient(grad: Tensor, weight: QuantizedWeight) -> Tensor:
    """Gradient of the output (M, N) -> gradient of the input (M, K)."""
    out = grad.new_zeros(len(grad), weight.in_features, dtype=torch.float32)
    for rows, part in _parts(weight, grad.dtype):
        out += grad[:, rows] @ part
    return out.to(grad.dtype)


def gated_linear_gradient(grad: Tensor, x: Tensor, gate: QuantizedWeight, up: QuantizedWeight) -> Tensor:
    """Gradient of silu(gate) * up (M, N) -> gradient of the input x (M, K); the products are recomputed."""
    gates, ups = dequantized_linear(x, gate).float(), dequantized_linear(x, up).float()
    share = torch.sigmoid(gates)
    slope = share * (1 + gates * (1 - share))
    through_gate = linear_gradient((grad * ups * slope).to(grad.dtype), gate)
    return through_gate + linear_gradient((grad * gates * share).to(grad.dtype), up)


def _parts(weight: QuantizedWeight, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their dequantized weights), so that the whole weight is never held dequantized."""
    step = max(1, DEQUANTIZED // (TILE * max(weight.in_features, 1)))
    for first in range(0, len(weight.codes), step):
        part = weight.tiles(first, min(first + step, len(weight.codes)))
        rows = slice(first * TILE, first * TILE + part.out_features)
        yield rows, dequantize_weight(part, dtype)
