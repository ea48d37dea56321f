"""Rotary embeddings against their formula, written out number by number."""

from __future__ import annotations

import math

import pytest
import torch

from pixtral.layers.blocks import frequencies, grid_rotation, line_rotation, rotate


def turned(vector: list[float], angles: list[float]) -> list[float]:
    """Channel c and channel c + D/2 as one complex number, times e^(i angle)."""
    half = len(angles)
    pairs = [
        complex(a, b) * complex(math.cos(x), math.sin(x))
        for a, b, x in zip(vector[:half], vector[half:], angles, strict=True)
    ]
    return [z.real for z in pairs] + [z.imag for z in pairs]


def test_frequencies() -> None:
    expected = [10000.0 ** (-2 * i / 16) for i in range(8)]
    torch.testing.assert_close(frequencies(16, 10000.0, torch.device("cpu")).tolist(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("theta", [1e4, 1e9])
def test_tokens_on_a_line(theta: float) -> None:
    positions = torch.tensor([0, 1, 7, 1000])
    x = torch.randn(4, 3, 8)
    out = rotate(x, line_rotation(positions, 8, theta, torch.float32))
    for n, position in enumerate(positions.tolist()):
        angles = [position * theta ** (-2 * i / 8) for i in range(4)]
        for head in range(3):
            assert out[n, head].tolist() == pytest.approx(turned(x[n, head].tolist(), angles), abs=1e-4)


@pytest.mark.parametrize("head_dim", [4, 16])
@pytest.mark.parametrize("theta", [1e4, 30.0])
def test_patches_on_grids(head_dim: int, theta: float) -> None:
    """Even frequencies turn with the row, odd ones with the column; the second image starts at its own (0, 0)."""
    grids = [(2, 3), (1, 100), (3, 1)]
    x = torch.randn(sum(h * w for h, w in grids), 2, head_dim)
    out = rotate(x, grid_rotation(grids, head_dim, theta, torch.float32, torch.device("cpu")))
    f = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    places = [(row, col) for h, w in grids for row in range(h) for col in range(w)]
    for n, (row, col) in enumerate(places):
        angles = [row * y for y in f[0::2]] + [col * y for y in f[1::2]]
        assert out[n, 1].tolist() == pytest.approx(turned(x[n, 1].tolist(), angles), abs=1e-4)


def test_scores_depend_on_distances_alone() -> None:
    q, k = torch.randn(2, 1, 1, 16)

    def score(q_place: int, k_place: int) -> float:
        a, b = (
            rotate(x[None], line_rotation(torch.tensor([place]), 16, 100.0, torch.float32))
            for x, place in ((q, q_place), (k, k_place))
        )
        return float((a * b).sum())

    assert score(5, 3) == pytest.approx(score(105, 103), abs=1e-4)
    assert abs(score(5, 3) - score(3, 5)) > 1e-3


def test_far_positions_keep_their_precision_in_bfloat16() -> None:
    """Angles are computed in float32 and rounded once; in bfloat16 positions past 256 would collide."""
    cos, _ = line_rotation(torch.tensor([1000, 1001]), 16, 1e4, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    torch.testing.assert_close(cos[:, 0, 0].float(), torch.tensor([1000.0, 1001.0]).cos(), rtol=0, atol=4e-3)
