"""load_image: every route to the same pixels, and what is refused on the way."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from pixtral.errors import ImageError, ImageFetchError, ImageTooLarge
from pixtral.images.limits import ImageLimits, shortened
from pixtral.images.processors import NativeImageProcessor, PixtralImageProcessor, PixtralImageProcessorFast
from pixtral.images.source import load_image

NOISE = np.random.default_rng(0).integers(0, 256, (30, 50, 4), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(NOISE[..., :3]), "JPEG", exif=exif, quality=95)


FILES: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: encoded(Image.fromarray(NOISE[..., :3]), "PNG"),
    "rgba.png": lambda: encoded(Image.fromarray(NOISE), "PNG"),
    "la.png": lambda: encoded(Image.fromarray(NOISE).convert("LA"), "PNG"),
    "grey16.png": lambda: encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 200), "PNG"),
    "bits.png": lambda: encoded(Image.fromarray(NOISE[..., 0] > 127), "PNG"),
    "palette.png": lambda: encoded(Image.fromarray(NOISE).quantize(16), "PNG"),
    "rotated.jpg": rotated_jpeg,
    "cmyk.jpg": lambda: encoded(Image.fromarray(NOISE[..., :3]).convert("CMYK"), "JPEG"),
    "photo.webp": lambda: encoded(Image.fromarray(NOISE), "WEBP"),
    "still.gif": lambda: encoded(Image.fromarray(NOISE[..., :3]).quantize(32), "GIF"),
    "scan.tiff": lambda: encoded(Image.fromarray(NOISE[..., 0].astype(np.float32) / 255), "TIFF"),
}


@pytest.fixture
def files() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def routes(name: str, data: bytes, folder: pathlib.Path, files: contextlib.ExitStack) -> dict[str, object]:
    path = folder / name
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    at_its_end = io.BytesIO(data)
    at_its_end.seek(0, io.SEEK_END)
    lazy = Image.open(io.BytesIO(data))
    decoded = Image.open(io.BytesIO(data))
    decoded.load()
    return {
        "str": str(path),
        "path": path,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "file": files.enter_context(path.open("rb")),
        "stream": io.BytesIO(data),
        "stream at its end": at_its_end,
        "data URI": f"data:image/png;base64,{text}",
        "data URI in capitals": f"DATA:image/png;BASE64,{text}",
        "data URI, percent": "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
        "base64": text,
        "base64 in lines": "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        "base64, URL-safe and bare": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "PIL, not decoded yet": lazy,
        "PIL": decoded,
    }


@pytest.mark.parametrize("name", FILES)
def test_every_route_gives_the_same_pixels(name: str, tmp_path: pathlib.Path, files: contextlib.ExitStack) -> None:
    data = FILES[name]()
    images = {route: load_image(source) for route, source in routes(name, data, tmp_path, files).items()}
    expected = np.asarray(images["bytes"])
    for route, image in images.items():
        assert image.mode == "RGB", route
        np.testing.assert_array_equal(np.asarray(image), expected, err_msg=route)
    if name == "rotated.jpg":
        assert images["bytes"].size == (30, 50)
    if name == "rgb.png":
        np.testing.assert_array_equal(expected, NOISE[..., :3])


@pytest.mark.parametrize("kind", [PixtralImageProcessor, PixtralImageProcessorFast, NativeImageProcessor])
@pytest.mark.parametrize("name", ["rgba.png", "rotated.jpg", "grey16.png"])
def test_every_route_gives_the_same_tensors(
    kind: type, name: str, tmp_path: pathlib.Path, files: contextlib.ExitStack
) -> None:
    sources = list(routes(name, FILES[name](), tmp_path, files).values())
    batch = kind()(sources, return_tensors="pt")
    assert all(torch.equal(pixels, batch.pixel_values[0]) for pixels in batch.pixel_values)
    assert (batch.image_sizes == batch.image_sizes[0]).all()


@pytest.mark.parametrize("kind", [PixtralImageProcessor, PixtralImageProcessorFast, NativeImageProcessor])
def test_arrays_and_tensors_take_the_same_way(kind: type) -> None:
    rgb = NOISE[..., :3]
    sources = [Image.fromarray(rgb), rgb, torch.from_numpy(rgb).permute(2, 0, 1), rgb.astype(np.float32) / 255]
    batch = kind()(sources, return_tensors="np")
    for pixels in batch["pixel_values"]:
        np.testing.assert_array_equal(pixels, batch["pixel_values"][0])
    assert load_image(NOISE[..., 0]).getpixel((0, 0)) == (NOISE[0, 0, 0],) * 3
    rgba = load_image(NOISE)
    np.testing.assert_array_equal(np.asarray(rgba), np.asarray(load_image(Image.fromarray(NOISE))))


def test_pages(tmp_path: pathlib.Path) -> None:
    pages = [Image.new("L", (4, 4), 10 * page) for page in range(3)]
    path = tmp_path / "pages.tiff"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert [load_image(path, page=page).getpixel((0, 0)) for page in range(3)] == [(0,) * 3, (10,) * 3, (20,) * 3]
    with pytest.raises(ImageError, match="the image has 3"):
        load_image(path, page=3)
    with Image.open(path) as image:
        assert load_image(image, page=2).getpixel((0, 0)) == (20,) * 3
        assert image.tell() == 0
        image.seek(1)
        assert load_image(image).getpixel((0, 0)) == (10,) * 3  # where its owner left it


def test_a_file_object_read_over_a_network() -> None:
    class Slow:
        """Gives a few bytes at a time and cannot rewind, as a response does."""

        def __init__(self, data: bytes) -> None:
            self.rest = data

        def read(self, size: int = -1) -> bytes:
            part, self.rest = self.rest[:7], self.rest[7:]
            return part

    expected = np.asarray(load_image(FILES["rgb.png"]()))
    np.testing.assert_array_equal(np.asarray(load_image(Slow(FILES["rgb.png"]()))), expected)
    with pytest.raises(ImageTooLarge, match="max_bytes"):
        load_image(Slow(FILES["rgb.png"]()), limits=ImageLimits(max_bytes=100))


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (
            "no/such/cat.jpg",
            ImageError,
            "'no/such/cat.jpg'; expected the path of an existing file, a URL, a data URI or",
        ),
        (pathlib.Path("no/such/cat.jpg"), ImageError, "no file at 'no/such/cat.jpg'"),
        ("", ImageError, "expected the path of an existing file"),
        (".", ImageError, "a folder"),
        (pathlib.Path("."), ImageError, "cannot be read"),
        ("file:///etc/hostname", ImageFetchError, "pass the path itself"),
        ("FILE:/etc/hostname", ImageFetchError, "pass the path itself"),
        ("ftp://example.com/cat.png", ImageFetchError, "http:// or https://"),
        ("gopher://example.com", ImageFetchError, "http:// or https://"),
        ("http://", ImageFetchError, "http:// or https://"),
        ("https://[::1", ImageFetchError, "not a valid URL"),
        ("http://example.com:99999/a.png", ImageFetchError, "not a valid URL"),
        ("http://me:secret@example.com/a.png", ImageFetchError, "user name for example.com"),
        ("data:image/png;base64", ImageError, "expected data:image/...;base64,<data>"),
        ("data:image/png;base64,@@@@", ImageError, "not valid base64"),
        ("data:image/png;base64,", ImageError, "found 0 bytes"),
        ("data:,hello", ImageError, "no image format"),
        (base64.b64encode(b"this is no image at all").decode(), ImageError, "no image format"),
        ("AAAAAAAAAAAAAAAAAAAAA", ImageError, "not valid base64"),
        (b"", ImageError, "found 0 bytes"),
        (io.BytesIO(), ImageError, "found 0 bytes"),
        (io.StringIO("text"), ImageError, "binary mode"),
        (None, ImageError, "found a NoneType"),
        (7, ImageError, "found a int"),
        ({"url": "x"}, ImageError, "found a dict"),
        (Image.new("RGB", (0, 5)), ImageError, "0x5 pixels"),
    ],
)
def test_refusals(source: object, kind: type[ImageError], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)  # what a program for Transformers catches


def test_long_input_is_not_repeated_in_full() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("x y" * 100_000)
    assert len(str(caught.value)) < 300
    assert shortened("short") == "'short'"


def test_empty_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="found 0 bytes"):
        load_image(tmp_path / "empty.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.png").write_bytes(FILES["rgb.png"]())
    (tmp_path / "mine.png").chmod(0)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path / "mine.png")


def test_files_can_be_forbidden(tmp_path: pathlib.Path) -> None:
    path, limits = tmp_path / "rgb.png", ImageLimits(allow_files=False)
    path.write_bytes(FILES["rgb.png"]())
    for source in (str(path), path):
        with pytest.raises(ImageError, match="allow_files is False"):
            load_image(source, limits=limits)
    assert load_image(base64.b64encode(FILES["rgb.png"]()).decode(), limits=limits).size == (50, 30)


def test_limits_hold_on_every_route(tmp_path: pathlib.Path, files: contextlib.ExitStack) -> None:
    data = FILES["rgb.png"]()
    for route, source in routes("rgb.png", data, tmp_path, files).items():
        with pytest.raises(ImageTooLarge, match="max_pixels"):
            load_image(source, limits=ImageLimits(max_pixels=1499))  # type: ignore[arg-type]
        if not route.startswith("PIL"):
            with pytest.raises(ImageTooLarge, match="max_bytes"):
                load_image(routes("rgb.png", data, tmp_path, files)[route], limits=ImageLimits(max_bytes=len(data) - 1))  # type: ignore[arg-type]
    with pytest.raises(ImageTooLarge, match="max_pixels"):
        load_image(NOISE, limits=ImageLimits(max_pixels=1499))


def test_a_pil_image_that_cannot_be_decoded() -> None:
    data = FILES["rgb.png"]()
    with pytest.raises(ImageError, match="truncated or corrupt"):
        load_image(Image.open(io.BytesIO(data[: len(data) // 2])))
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(ImageError, match="truncated or corrupt"):
        load_image(closed)


def test_nothing_is_copied_without_need() -> None:
    image = Image.fromarray(NOISE[..., :3])
    assert load_image(image) is image
