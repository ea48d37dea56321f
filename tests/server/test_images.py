"""Images of a request: decoded as everywhere else, within budgets and limits, without holding up the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from profiles import examples
from server.image_files import data_uri, drawn_pdf, encoded, hostile, huge_exif, pdf

from pixtral.images.geometry import image_grid
from pixtral.images.limits import ImageLimits
from pixtral.images.source import load_image
from pixtral.server.errors import ApiError
from pixtral.server.images import ImageLoader, ImageUrl, RequestImageLimits, size_within
from pixtral.server.pdf import PdfLimits, draw_pages


def tokens_of(width: int, height: int) -> int:
    return image_grid(width, height).num_tokens


LIMITS = RequestImageLimits(tokens_of)
HOSTILE = hostile()


def load(*urls: ImageUrl | str, limits: RequestImageLimits = LIMITS) -> list[list[Image.Image]]:
    async def once() -> list[list[Image.Image]]:
        loader = ImageLoader(limits)
        try:
            asked = [url if isinstance(url, ImageUrl) else ImageUrl(url) for url in urls]
            async with loader.loaded(asked) as images:
                return images
        finally:
            await loader.close()

    return asyncio.run(once())


def test_the_same_pixels_as_everywhere_else() -> None:
    files = [encoded(64, 48, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    for file, (image,) in zip(files, load(*map(data_uri, files)), strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(file)))


def test_no_images() -> None:
    assert load() == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, message = HOSTILE[name]
    drawn: list[int] = []
    draw = ImageFile.ImageFile.load

    def noted(image: ImageFile.ImageFile) -> object:
        drawn.append(image.width * image.height)
        return draw(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noted)
    with pytest.raises(ApiError, match=message) as caught:
        load(ImageUrl(url, param="messages[3].content[1]"))
    assert caught.value.status == 400
    assert caught.value.param == "messages[3].content[1]"
    assert caught.value.code in ("invalid_image", "image_too_large", "image_not_fetched")
    assert "ImageLimits" not in caught.value.message
    assert max(drawn, default=0) < 1_000_000, "a bomb went off"


@pytest.mark.filterwarnings("ignore:Tag data larger than file")  # Pillow's
def test_odd_exif_is_no_obstacle() -> None:
    ((image,),) = load(data_uri(huge_exif(1_000_000)))
    assert image.size == (32, 24)


def test_the_second_image_is_to_blame() -> None:
    good = data_uri(encoded(16, 16))
    with pytest.raises(ApiError) as caught:
        load(ImageUrl(good, param="first"), ImageUrl("file:///x", param="second"))
    assert caught.value.param == "second"


def test_too_many_are_refused_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixtral.server.images.read_bytes", lambda *_: pytest.fail("one was read"))
    with pytest.raises(ApiError, match=r"found 1000 images.*at most 16") as caught:
        load(*[data_uri(b"")] * 1000)
    assert caught.value.code == "too_many_images"


@pytest.mark.parametrize(("detail", "most"), [("low", 256), ("auto", 1000), ("high", 4160)])
def test_detail_is_a_budget_of_tokens(detail: str, most: int) -> None:
    limits = dataclasses.replace(LIMITS, auto_tokens=1000)
    for size in ((1024, 1024), (3000, 500), (500, 1400), (64, 64)):
        ((image,),) = load(ImageUrl(data_uri(encoded(*size)), detail), limits=limits)  # type: ignore[arg-type]
        full = tokens_of(*size)
        if full <= most:
            assert image.size == size  # never made larger, nor touched without need
        else:
            assert 0.85 * most < tokens_of(*image.size) <= most
            assert image.size[0] / image.size[1] == pytest.approx(size[0] / size[1], rel=0.03)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(2, 5000))
def test_every_budget_is_kept(width: int, height: int, budget: int) -> None:
    smaller = size_within(width, height, budget, tokens_of)
    assert smaller[0] <= width and smaller[1] <= height
    assert tokens_of(*smaller) <= max(
        budget, tokens_of(*(1 if side < max(width, height) else side for side in smaller))
    )


def test_pages_of_a_pdf() -> None:
    red_left = drawn_pdf(b"1 0 0 rg 0 0 100 100 re f")
    pages, (image,) = load(data_uri(pdf((300, 200), (100, 400)), "application/pdf"), data_uri(encoded(16, 16)))
    assert [page.size for page in pages] == [(1024, 683), (256, 1024)]
    assert image.size == (16, 16)
    ((page,),) = load(ImageUrl(data_uri(red_left, ""), "low"))
    assert tokens_of(*page.size) <= 256
    assert page.getpixel((10, 10)) == (255, 0, 0)
    assert page.getpixel((page.width - 10, 10)) == (255, 255, 255)


def test_pages_count_as_images() -> None:
    two = data_uri(pdf((50, 50), (50, 50)), "application/pdf")
    limits = dataclasses.replace(LIMITS, max_images=3)
    assert len(load(two, limits=limits)[0]) == 2
    with pytest.raises(ApiError, match=r"found 4 images in a request \(pages of PDFs are counted\)"):
        load(two, two, limits=limits)


LOOP = b"0 0 1 rg " + b"0 0 200 100 re f " * 3_000_000


def test_a_pdf_that_takes_for_ever() -> None:
    with pytest.raises(ApiError, match=r"not drawn within 0\.5 seconds") as caught:
        load(data_uri(drawn_pdf(LOOP), ""), limits=dataclasses.replace(LIMITS, pdf_timeout=0.5, max_bytes=1 << 28))
    assert caught.value.code == "image_too_large"


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are the system's")
def test_a_pdf_that_takes_all_memory_ends_its_own_process_only() -> None:
    with pytest.raises(Exception, match="damaged or too complex"):
        asyncio.run(draw_pages(pdf((50, 50)), PdfLimits(max_memory=1 << 24)))
    assert len(asyncio.run(draw_pages(pdf((50, 50)), PdfLimits()))) == 1


def test_the_pdf_process_knows_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXTRAL_API_KEY", "secret")
    child = tmp_path / "child.py"
    child.write_text("import os, sys; print(sorted(os.environ), file=open(sys.argv[0] + '.env', 'w'))")
    monkeypatch.setattr("pixtral.server.pdf._CHILD", child)
    with pytest.raises(Exception, match="damaged"):
        asyncio.run(draw_pages(b"%PDF-1.4", PdfLimits()))
    assert "PIXTRAL" not in (tmp_path / "child.py.env").read_text()


def test_the_event_loop_goes_on_while_images_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding waits here for something that only the event loop does."""
    goes_on = threading.Event()

    def decode(data: bytes, limits: ImageLimits) -> Image.Image:
        assert goes_on.wait(60), "the event loop stands still"
        return load_image(data, limits=limits)

    monkeypatch.setattr("pixtral.server.images.load_image", decode)

    async def sizes() -> list[tuple[int, int]]:
        loader = ImageLoader(LIMITS)

        async def beat() -> None:
            await asyncio.sleep(0.01)
            goes_on.set()

        beating = asyncio.ensure_future(beat())
        async with loader.loaded([ImageUrl(data_uri(encoded(64, 48)))] * 4) as images:
            found = [image.size for (image,) in images]
        await beating
        await loader.close()
        return found

    assert asyncio.run(sizes()) == [(64, 48)] * 4


def test_few_requests_hold_images_at_a_time() -> None:
    async def most() -> int:
        loader = ImageLoader(dataclasses.replace(LIMITS, max_preparing=2))
        inside = most = 0

        async def one() -> None:
            nonlocal inside, most
            async with loader.loaded([ImageUrl(data_uri(encoded(16, 16)))]):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(one() for _ in range(8)))
        await loader.close()
        return most

    assert asyncio.run(most()) == 2


def test_a_multi_page_tiff_gives_its_first_page() -> None:
    pages = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    ((image,),) = load(data_uri(buffer.getvalue(), "image/tiff"))
    assert image.getpixel((0, 0)) == (255, 0, 0)


FILES = {kind: encoded(40, 30, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


@pytest.mark.filterwarnings("ignore")  # what Pillow says of damaged files
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 999), st.binary(max_size=6)), max_size=6),
    st.data(),
)
def test_damaged_files_are_images_or_refused(kind: str, changes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Bytes changed anywhere, most of them in the header, the end perhaps cut: no error but ours."""
    file = bytearray(FILES[kind])
    for place, new in changes:
        file[place % len(file) : place % len(file) + len(new)] = new
    url = data_uri(bytes(file[: data.draw(st.integers(1, len(file)))]), "")
    try:
        load(url, limits=dataclasses.replace(LIMITS, max_pixels=100_000))
    except ApiError as error:
        assert error.status == 400


PDF = drawn_pdf(b"1 0 0 rg 0 0 100 100 re f BT /F1 12 Tf (hello) Tj ET")


@examples(12)
@given(st.lists(st.tuples(st.integers(8, len(PDF) - 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=6))
def test_damaged_pdfs_are_pages_or_refused(changes: list[tuple[int, bytes]]) -> None:
    file = bytearray(PDF)
    for place, new in changes:
        file[place : place + len(new)] = new
    try:
        load(data_uri(bytes(file), "application/pdf"))
    except ApiError as error:
        assert error.status == 400
