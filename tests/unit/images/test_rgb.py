"""Any PIL mode to upright RGB."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pixtral.errors import ImageError
from pixtral.images.convert import scale_to_8_bits, to_rgb, upright


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


@pytest.mark.parametrize("data", [b"Exif\x00\x00garbage", b"", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own
def test_broken_exif_counts_as_none(data: bytes) -> None:
    image = Image.fromarray(UPRIGHT)
    image.info["exif"] = data
    np.testing.assert_array_equal(np.asarray(upright(image)), UPRIGHT)
