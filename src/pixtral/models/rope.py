"""Rotary position embeddings, over a line for tokens and over a grid for patches (half-split pairing).

RoFormer, arXiv:2104.09864. Channel c of a head turns together with channel c + D/2. On the grid the even frequencies
follow the row and the odd ones the column (Pixtral 12B, arXiv:2410.07073, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.ops.rowwise import rotate_reference

Rotation = tuple[Tensor, Tensor]


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

    Computed from coordinates, so that an image of any size has its own.
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
    """Turn the heads of x (N, H, D) by the angles of their rows."""
    return rotate_reference(x, *rotation)
