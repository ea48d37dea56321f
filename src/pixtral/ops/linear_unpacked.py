"""Products with weights that are unpacked for them, some rows at a time: unrounded activations, and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pixtral.ops.packing import TILE, PackedWeight

UNPACKED = 1 << 26  # weights that are unpacked at once


def unpacked_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x (M, K) -> (M, N) in x's dtype, without rounding x."""
    out = x.new_empty(len(x), weight.out_features)
    for rows, part in _parts(weight, x.dtype):
        out[:, rows] = F.linear(x, part, None if bias is None else bias[rows].to(x.dtype))
    return out


def unpacked_gated_linear(x: Tensor, gate: PackedWeight, up: PackedWeight) -> Tensor:
    """silu(x gate^T) * (x up^T), without rounding x."""
    return F.silu(unpacked_linear(x, gate)) * unpacked_linear(x, up)


def linear_gradient(grad: Tensor, weight: PackedWeight) -> Tensor:
    """The gradient of a product (M, N) -> that of its input (M, K)."""
    out = grad.new_zeros(len(grad), weight.in_features, dtype=torch.float32)
    for rows, part in _parts(weight, grad.dtype):
        out += grad[:, rows] @ part
    return out.to(grad.dtype)


def gated_linear_gradient(grad: Tensor, x: Tensor, gate: PackedWeight, up: PackedWeight) -> Tensor:
    """The gradient of silu(gate) * up (M, N) -> that of its input x (M, K); the products are made again."""
    gates, ups = unpacked_linear(x, gate).float(), unpacked_linear(x, up).float()
    share = torch.sigmoid(gates)
    slope = share * (1 + gates * (1 - share))
    through_gate = linear_gradient((grad * ups * slope).to(grad.dtype), gate)
    return through_gate + linear_gradient((grad * gates * share).to(grad.dtype), up)


def _parts(weight: PackedWeight, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows and what they unpack to, so that the whole weight never lies unpacked in memory."""
    step = max(1, UNPACKED // (TILE * max(weight.in_features, 1)))
    for first in range(0, len(weight.codes), step):
        part = weight.tiles(first, min(first + step, len(weight.codes)))
        tensors = (part.codes, part.scales, part.row_scales)
        rows = slice(first * TILE, first * TILE + part.out_features)
        yield rows, torch.ops.pixtral.unpack(*tensors, part.bits, part.group_size, part.out_features, dtype)
