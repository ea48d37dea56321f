"""Blocks of tower and decoder: RMSNorm, the gated feed-forward block, rotary position embeddings (half-split pairs)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixtral.layers.linear import QuantizedLinear, applied, gated, takes_kernels
from pixtral.ops.rowwise import rms_norm, rotate_reference

# Without gradients the feed-forward block runs on this many rows at a time: the wide activations of long inputs stay
# in the cache, and their memory does not grow with the input.
MLP_ROWS = 512
FUSED_MLP_ROWS = 2048  # where intermediate rows are written once, in bfloat16

Rotation = tuple[Tensor, Tensor]  # cosine and sine


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of a `hidden_act` field."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "swish": F.silu,
        "gelu": F.gelu,
        "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
        "gelu_new": functools.partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "quick_gelu": _quick_gelu,
    }
    return functions[name]


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv:1910.07467), computed in float32, scaled in the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, native: bool = True) -> Tensor:
        """(N, C) -> (N, C); see `AttentionStep` for `native`."""
        return rms_norm(x, self.weight, self.eps, native=native)


class MLP(nn.Module):
    """Gated feed-forward block (arXiv:2002.05202): down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.act = activation(hidden_act)
        self.is_silu = hidden_act in ("silu", "swish")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        fused = isinstance(self.gate_proj, QuantizedLinear) or takes_kernels(x, self.gate_proj)
        most = FUSED_MLP_ROWS if fused else MLP_ROWS
        if torch.is_grad_enabled() or len(x) <= most:
            return self._rows(x)
        return torch.cat([self._rows(rows) for rows in torch.split(x, most)])

    def _rows(self, x: Tensor) -> Tensor:
        fused = gated(x, self.gate_proj, self.up_proj) if self.is_silu else None
        if fused is None:
            hidden = self.act(applied(self.gate_proj, x))  # the gate is free before up is there
            up = applied(self.up_proj, x)
            fused = hidden * up if torch.is_grad_enabled() else hidden.mul_(up)
        return applied(self.down_proj, fused)


def frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """(D/2,) float32: theta ** (-2 i / D)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).to(device=device, dtype=torch.float32) / head_dim
    return 1.0 / (theta**exponent)


def line_rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Cosine and sine, each (N, 1, D/2), for tokens at `positions` (N,)."""
    angle = positions.float()[:, None] * frequencies(head_dim, theta, positions.device)
    return angle.cos().to(dtype)[:, None], angle.sin().to(dtype)[:, None]


def grid_rotation(
    grids: Sequence[tuple[int, int]], head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Rotation:
    """Cosine and sine, each (N, 1, D/2), for the patches of images of (rows, columns), row by row, packed.

    Computed from coordinates, for images of any size (arXiv:2410.07073, section 2.1).
    """
    f = frequencies(head_dim, theta, device)
    angles = []
    for rows, cols in grids:
        down = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * f[0::2]  # (rows, D/4)
        right = torch.arange(cols, device=device, dtype=torch.float32)[:, None] * f[1::2]  # (cols, D/4)
        down = down[:, None].expand(rows, cols, -1)
        right = right[None, :].expand(rows, cols, -1)
        angles.append(torch.cat([down, right], dim=-1).reshape(rows * cols, -1))
    angle = torch.cat(angles)
    return angle.cos().to(dtype)[:, None], angle.sin().to(dtype)[:, None]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Apply the rotary embedding of each row to the heads of x (N, H, D)."""
    return rotate_reference(x, *rotation)
