"""Arrays and tensors as images: layouts, dtypes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pixtral.errors import ImageError
from pixtral.images.convert import image_from_array, is_array, is_float, pixels_of

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "value",
    [
        RGB,
        RGB.transpose(2, 0, 1),
        RGB[:, ::-1][:, ::-1],
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        RGB.astype(np.int64),
        torch.from_numpy(RGB).to(torch.int32),
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float64) / 255,
        RGB.astype(np.float16) / np.float16(255),
        torch.from_numpy(RGB).permute(2, 0, 1).float().div(255).requires_grad_(),
        RGB.astype(np.uint16) * 257,
    ],
)
def test_one_image_in_every_form(value: object) -> None:
    assert is_array(value)
    np.testing.assert_array_equal(np.asarray(image_from_array(value)), RGB)


def test_bfloat16() -> None:
    image = image_from_array(torch.from_numpy(RGB).div(255).to(torch.bfloat16))
    assert np.abs(np.asarray(image).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize(("shape", "mode"), [((5, 7), "L"), ((1, 5, 7), "L"), ((5, 7, 1), "L"), ((4, 5, 7), "RGBA")])
def test_channels(shape: tuple[int, ...], mode: str) -> None:
    image = image_from_array(np.zeros(shape, np.uint8))
    assert (image.mode, image.size) == (mode, (7, 5))


def test_bool_is_black_and_white() -> None:
    assert np.asarray(image_from_array(np.array([[True, False]]))).tolist() == [[255, 0]]


def test_channel_order_decides_when_the_shape_does_not() -> None:
    values = np.arange(9, dtype=np.uint8).reshape(3, 1, 3)
    with pytest.raises(ImageError, match=r"\(3, 1, 3\).*input_data_format"):
        image_from_array(values)
    assert image_from_array(values, "channels_first").size == (3, 1)
    assert image_from_array(values, "channels_last").size == (1, 3)
    with pytest.raises(ImageError, match="expected 1, 3 or 4 channels"):
        image_from_array(RGB, "channels_first")
    with pytest.raises(ImageError, match="expected 'channels_first'"):
        image_from_array(RGB, "HWC")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), "expected 1, 3 or 4 channels"),
        (np.zeros(3, np.uint8), "shape"),
        (np.zeros((1, 2, 3, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.full((2, 2, 3), 1.01), "0..1 for this dtype.*uint8.*normalised"),
        (np.full((2, 2, 3), 255.0), "0..1 for this dtype"),
        (np.full((2, 2, 3), -0.1), "0..1"),
        (np.full((2, 2, 3), np.nan), "0..1"),
        (np.full((2, 2, 3), 256), "0..255 for this dtype.*uint16"),
        (np.full((2, 2, 3), -1), "0..255"),
        (np.zeros((2, 2, 3), complex), "dtype complex128"),
        (np.full((2, 2, 3), "a"), "dtype"),
    ],
)
def test_refusals(value: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        image_from_array(value)


def test_kinds() -> None:
    assert not is_array([1]) and not is_array(Image.new("L", (1, 1))) and not is_array(torch)
    assert is_float(np.zeros(1)) and is_float(torch.zeros(1, dtype=torch.bfloat16))
    assert not is_float(RGB) and not is_float(1.0)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (70_000, 2), (300, 700), (2, 50_000)])
def test_pixels_come_out_in_strips_as_they_do_at_once(width: int, height: int) -> None:
    image = Image.effect_noise((width, height), 80).convert("RGB")
    pixels = pixels_of(image)
    np.testing.assert_array_equal(pixels, np.asarray(image))
    assert pixels.flags.writeable and pixels.flags.c_contiguous
