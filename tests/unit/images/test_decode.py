"""Encoded bytes: limits read from the header, damage named, pages found."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pixtral.errors import ImageError, ImageTooLarge
from pixtral.images.decode import decode
from pixtral.images.limits import ImageLimits

LIMITS = ImageLimits()
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "PCX", "JPEG2000"]


def encoded(kind: str, image: Image.Image = NOISE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    image = decode(encoded(kind), LIMITS)
    assert image.size == NOISE.size
    if kind in ("PNG", "TIFF", "BMP", "PPM", "TGA", "PCX"):
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(NOISE))


def test_formats_can_be_chosen() -> None:
    limits = ImageLimits(formats=("PNG", "JPEG"))
    assert decode(encoded("JPEG"), limits).size == NOISE.size
    for kind in ("GIF", "TIFF", "PPM"):
        with pytest.raises(ImageError, match=r"no image format known here.*expected PNG, JPEG"):
            decode(encoded(kind), limits)


def test_a_bomb_is_refused_from_its_header() -> None:
    """Of which there is nothing else here."""
    with pytest.raises(ImageTooLarge, match=r"50000x50000 = 2,500,000,000 pixels.*max_pixels"):
        decode(png_header(50_000, 50_000), LIMITS)


def test_the_pixel_limit_is_ours_and_not_pillows() -> None:
    """Pillow warns above 89 million pixels and fails above 179 million, by a global that is left alone."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLarge):
            decode(png_header(11_000, 9_000), ImageLimits(max_pixels=98_999_999))
        with pytest.raises(ImageError, match="truncated or corrupt") as caught:  # past the limit: decoding begins
            decode(png_header(20_000, 10_000), ImageLimits(max_pixels=200_000_000))
    assert not isinstance(caught.value, ImageTooLarge)
    assert before == Image.MAX_IMAGE_PIXELS


def test_limits_are_inclusive() -> None:
    data = encoded("PNG")
    assert decode(data, ImageLimits(max_pixels=2400, max_bytes=len(data))).size == (60, 40)
    with pytest.raises(ImageTooLarge, match="expected at most 2,399"):
        decode(data, ImageLimits(max_pixels=2399))
    with pytest.raises(ImageTooLarge, match="max_bytes"):
        decode(data, ImageLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found 0 bytes"),
        (b"hello world, this is text", "begin with b'hello world,'"),
        (b"<html><body>404</body></html>", "no image format"),
        (b"\x89PNG\r\n\x1a\n", "corrupt header"),
        (b"\xff\xd8\xff", "corrupt header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no image format"),
        (bytes(1000), "no image format"),
    ],
)
def test_not_an_image(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data, LIMITS)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(kind: str) -> None:
    data = encoded(kind)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2], LIMITS)


@pytest.mark.parametrize("kind", [*FORMATS, "AVIF"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns about odd metadata, which is its right
def test_damage_anywhere_gives_pixels_or_an_image_error(kind: str) -> None:
    if kind == "AVIF" and kind not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    rng, data = np.random.default_rng(1), encoded(kind)
    limits = ImageLimits(max_pixels=1_000_000)
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(damaged) if rng.random() < 0.5 else min(80, len(damaged)), 4)
        damaged[places] = rng.integers(0, 256, len(places))
        with contextlib.suppress(ImageError):
            decode(damaged.tobytes()[: rng.integers(1, len(data) + 1)], limits)


def test_pillows_own_limit_is_an_image_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow applies it inside the WebP plugin, whatever ours is."""
    data = encoded("WEBP", Image.new("RGB", (300, 300)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    try:
        assert decode(data, LIMITS).size == (300, 300)  # a Pillow whose plugin does not check
    except ImageTooLarge as error:
        assert "Pillow's own limit" in str(error)


def test_pages() -> None:
    pages = [Image.new("RGB", (4 + page, 3), (page, 0, 0)) for page in range(3)]
    data = encoded("TIFF", pages[0], save_all=True, append_images=pages[1:])
    for page in range(3):
        image = decode(data, LIMITS, page)
        assert image.size == (4 + page, 3) and image.getpixel((0, 0)) == (page, 0, 0)
    with pytest.raises(ImageError, match="page 3 was asked for, but the image has 3"):
        decode(data, LIMITS, 3)
    with pytest.raises(ImageError, match="counted from 0"):
        decode(data, LIMITS, -1)
    with pytest.raises(ImageError, match="page 1 was asked for, but the image has 1"):
        decode(encoded("PNG"), LIMITS, 1)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(kind, frames[0], save_all=True, append_images=frames[1:], lossless=True, duration=50)
    assert decode(data, LIMITS).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert decode(data, LIMITS, 2).convert("RGB").getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("wrong", [{"max_pixels": 0}, {"max_bytes": -1}, {"timeout": 0.0}, {"max_redirects": -1}])
def test_limits_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageLimits(**wrong)
