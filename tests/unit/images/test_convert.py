"""Conversions: PIL images of any mode to upright RGB, arrays and tensors to PIL images."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pixtral.errors import ImageError
from pixtral.images.convert import image_from_array, is_array, is_float, pixels_of, scale_to_8_bits, to_rgb, upright


def pixel(image: Image.Image) -> tuple[int, ...]:
    value = to_rgb(image).getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.new("1", (1, 1), 0), (0, 0, 0)),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("RGBa", (1, 1), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (1, 1), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (1, 1), (0, 51)), (204, 204, 204)),
        (Image.new("La", (1, 1), (0, 51)), (204, 204, 204)),
        (Image.new("PA", (1, 1), (0, 0)), (255, 255, 255)),
        (palette(None), (200, 100, 50)),
        (palette(1), (255, 255, 255)),
        (palette(0), (200, 100, 50)),
        (palette(b"\xff\x00"), (255, 255, 255)),
        (Image.new("CMYK", (1, 1), (0, 255, 0, 0)), (255, 0, 255)),
        (Image.new("YCbCr", (1, 1), (128, 128, 128)), (128, 128, 128)),
        (Image.new("HSV", (1, 1), (0, 0, 90)), (90, 90, 90)),
        (Image.new("I;16", (1, 1), 65535), (255, 255, 255)),
        (Image.new("I;16", (1, 1), 30000), (117, 117, 117)),
        (Image.new("I;16B", (1, 1), 30000), (117, 117, 117)),
        (Image.new("I;16", (1, 1), 200), (1, 1, 1)),
        (Image.new("I", (1, 1), 30000), (117, 117, 117)),
        (Image.new("I", (1, 1), 200), (200, 200, 200)),
        (Image.new("F", (1, 1), 30000.0), (117, 117, 117)),
        (Image.new("F", (1, 1), 200.0), (200, 200, 200)),
        (Image.new("F", (1, 1), 0.5), (128, 128, 128)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).size == image.size
    assert pixel(image) == expected


def test_colour_keys_are_transparent() -> None:
    for image, key in (
        (Image.new("RGB", (1, 1), (9, 9, 9)), (9, 9, 9)),
        (Image.new("L", (1, 1), 9), 9),
        (Image.new("I;16", (1, 1), 900), 900),
    ):
        assert pixel(image) != (255, 255, 255)
        image.info["transparency"] = key
        assert pixel(image) == (255, 255, 255)


@pytest.mark.parametrize(
    "image", [Image.new("I", (1, 1), 70000), Image.new("I", (1, 1), -1), Image.new("F", (1, 1), float("nan"))]
)
def test_values_without_a_range_are_refused(image: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"expected 0\.\.65535"):
        to_rgb(image)


def test_modes_without_a_way_to_rgb_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Image.Image, mode: str) -> Image.Image:
        raise ValueError("conversion not supported")  # what Pillow says of LAB before it learned it

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ImageError, match="mode LAB"):
        to_rgb(Image.new("LAB", (1, 1)))


def test_a_palette_image_without_palette() -> None:
    image = Image.new("P", (1, 1))
    image.palette = None
    with pytest.raises(ImageError, match="truncated or corrupt"):
        to_rgb(image)


def test_scaling_is_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(scale_to_8_bits(values), np.rint(values / 257).astype(np.uint8))


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3)  # height 2, width 3
STORED = {  # how a camera stores that image under each orientation, from the EXIF specification
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_orientations(orientation: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(upright(image)), UPRIGHT)
    np.testing.assert_array_equal(np.asarray(image), STORED[orientation])  # the caller's image is left alone


def test_what_was_turned_is_not_turned_again() -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[6]))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    once = upright(image)
    np.testing.assert_array_equal(np.asarray(upright(once)), UPRIGHT)


def test_the_orientation_counts_beside_tags_that_cannot_be_written() -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[6]))
    entries = (0x0112, 3, 1, 6), (0x011A, 2, 1, 0)  # a resolution that is text
    image.info["exif"] = (
        b"Exif\0\0II*\0\x08\0\0\0\2\0" + b"".join(struct.pack("<HHII", *one) for one in entries) + bytes(4)
    )
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(np.asarray(upright(image)), UPRIGHT)


@pytest.mark.parametrize("data", [b"Exif\x00\x00garbage", b"", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own
def test_broken_exif_counts_as_none(data: bytes) -> None:
    image = Image.fromarray(UPRIGHT)
    image.info["exif"] = data
    np.testing.assert_array_equal(np.asarray(upright(image)), UPRIGHT)


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
