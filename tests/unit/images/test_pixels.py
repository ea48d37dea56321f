"""The arithmetic behind the processors, each against a slow twin that nobody can doubt."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pixtral.errors import ConfigError
from pixtral.images.options import DEFAULTS, merge, settings_from
from pixtral.images.pixels import look_up, normalization_table, normalize_float, pad_batch, resize_cubic

IMAGE = np.random.default_rng(0).integers(0, 256, (23, 17, 3), dtype=np.uint8)


def cubic_by_hand(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Four by four taps of Keys' kernel with a = -0.75 for every pixel, in float64."""

    def kernel(distance: float) -> float:
        a, x = -0.75, abs(distance)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    out = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            at_y = (y + 0.5) * image.shape[0] / height - 0.5
            at_x = (x + 0.5) * image.shape[1] / width - 0.5
            for row in range(math.floor(at_y) - 1, math.floor(at_y) + 3):
                for col in range(math.floor(at_x) - 1, math.floor(at_x) + 3):
                    pixel = image[min(max(row, 0), image.shape[0] - 1), min(max(col, 0), image.shape[1] - 1)]
                    out[y, x] += kernel(at_y - row) * kernel(at_x - col) * pixel
    return out


@pytest.mark.parametrize("size", [(23, 17), (32, 32), (16, 16), (7, 40), (1, 1), (5, 3)])
def test_resize_cubic(size: tuple[int, int]) -> None:
    ours = resize_cubic(IMAGE, *size)
    assert ours.dtype == np.float32 and ours.shape == (*size, 3)
    assert np.abs(ours - cubic_by_hand(IMAGE, *size)).max() < 1e-3


def test_resize_cubic_of_one_pixel() -> None:
    assert np.abs(resize_cubic(IMAGE[:1, :1], 16, 16) - IMAGE[0, 0]).max() < 1e-3


@pytest.mark.parametrize("options", [{}, {"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 0.01}])
def test_table_is_the_arithmetic_on_every_pixel(options: dict[str, object]) -> None:
    settings = settings_from(merge(DEFAULTS, options, "test"))
    values: Any = IMAGE.astype(np.float32)
    if settings.do_rescale:
        values = (IMAGE.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    if settings.do_normalize:
        values = (values - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32)
    np.testing.assert_array_equal(look_up(normalization_table(settings), IMAGE), values.transpose(2, 0, 1))
    ours = normalize_float(IMAGE.astype(np.float32), settings)
    np.testing.assert_allclose(ours, values.transpose(2, 0, 1), rtol=2e-6, atol=2e-6)


def test_nothing_to_do_leaves_8_bits() -> None:
    settings = settings_from(merge(DEFAULTS, {"do_rescale": False, "do_normalize": False}, "test"))
    pixels = look_up(normalization_table(settings), IMAGE)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, IMAGE.transpose(2, 0, 1))


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_pad_batch(convert: object) -> None:
    small, large = np.ones((3, 2, 5), np.uint8), np.full((3, 4, 1), 2.5, np.float32)
    batch = pad_batch([convert(small), convert(large)], None)  # type: ignore[operator, type-var]
    assert tuple(batch.shape) == (2, 3, 4, 5) and "float32" in str(batch.dtype)
    assert float(batch.sum()) == small.sum() + large.sum()
    assert float(batch[0, 0, 1, 4]) == 1 and float(batch[1, 2, 3, 0]) == 2.5
    assert tuple(pad_batch([convert(small)], (7, 7)).shape) == (1, 3, 7, 7)  # type: ignore[operator, type-var]
    with pytest.raises(ConfigError, match="enlarge"):
        pad_batch([small], (1, 9))
