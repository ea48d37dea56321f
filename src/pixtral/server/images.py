"""Images of requests: fetched, decoded and drawn in threads and processes, under limits, within a budget of tokens.

data: URIs are always read, http(s) URLs only where that is allowed, and nothing else ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from PIL import Image

from pixtral.errors import ImageError, ImageFetchError, ImageTooLarge
from pixtral.images.limits import ImageLimits, shortened
from pixtral.images.source import load_image, read_bytes
from pixtral.server.errors import ApiError
from pixtral.server.pdf import PdfLimits, draw_pages, is_pdf

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Detail = Literal["auto", "low", "high"]

MEDIA_TYPES = ("image/", "application/pdf")
_UNTYPED = ("", "text/plain", "application/octet-stream", "binary/octet-stream")
_DATA = re.compile(r"\s*data:\s*([^,;]*)", re.IGNORECASE)
_REMOTE = re.compile(r"\s*https?://", re.IGNORECASE)
_SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
# Advice that clients cannot follow, and addresses of the network around the server.
_NOT_FOR_CLIENTS = re.compile(r",? or raise ImageLimits\.\w+| \(ImageLimits\.\w+ is False\)")
_PRIVATE_ADDRESS = re.compile(r"leads to \S+, which is not a public address")


@dataclasses.dataclass(frozen=True, slots=True)
class RequestImageLimits:
    """Limits on the images of one request.

    Attributes:
        tokens_of: tokens of the prompt that an image of (width, height) takes.
        longest_edge: longest side after resizing, in pixels; PDF pages are drawn at this size.
        max_images: images in a request, every page of a PDF counted.
        max_pixels: of one image, read from its header before it is decoded.
        max_bytes: of one encoded image or PDF.
        max_pdf_pages: of one file.
        low_tokens, auto_tokens, high_tokens: the budget of an image by its `detail`; None leaves it as large as the
            model takes it.
        allow_remote: whether http(s) URLs are fetched.
        allow_private: whether those may lead to addresses that are not public; for tests on loopback.
        fetch_timeout: seconds for one download, redirects included.
        max_redirects: of one download.
        pdf_timeout: seconds to draw one file.
        max_preparing: requests that hold decoded images at the same time.
    """

    tokens_of: Callable[[int, int], int]
    longest_edge: int = 1024
    max_images: int = 16
    max_pixels: int = 33_554_432
    max_bytes: int = 20_971_520
    max_pdf_pages: int = 8
    low_tokens: int = 256
    auto_tokens: int | None = None
    high_tokens: int | None = None
    allow_remote: bool = False
    allow_private: bool = False
    fetch_timeout: float = 10.0
    max_redirects: int = 3
    pdf_timeout: float = 20.0
    max_preparing: int = 4

    def budget(self, detail: Detail) -> int | None:
        """The maximum of tokens of an image, if there is one."""
        budgets: dict[str, int | None] = {
            "low": self.low_tokens, "auto": self.auto_tokens, "high": self.high_tokens
        }  # fmt: skip
        return budgets[detail]

    def of_images(self) -> ImageLimits:
        """The limits that reading and decoding check."""
        return ImageLimits(
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
            timeout=self.fetch_timeout,
            max_redirects=self.max_redirects,
            allow_remote=self.allow_remote,
            allow_private=self.allow_private,
            allow_files=False,
            formats=FORMATS,
            media_types=MEDIA_TYPES,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image of a request: its URL, its level of detail, and the field it was in."""

    url: str
    detail: Detail = "auto"
    param: str = "messages"


class ImageLoader:
    """Loads the images of all requests."""

    def __init__(self, limits: RequestImageLimits) -> None:
        self.limits = limits
        self._fetcher = Fetcher(limits.of_images())
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, 4), thread_name_prefix="pixtral-decode")
        self._preparing = asyncio.Semaphore(limits.max_preparing)
        self._drawing = asyncio.Semaphore(2)

    @contextlib.asynccontextmanager
    async def loaded(self, image_urls: Sequence[ImageUrl]) -> AsyncIterator[list[list[Image.Image]]]:
        """The images of one request, in order; a PDF gives one for each page, anything else gives one.

        Decoded images are large, so only `max_preparing` requests are inside of the context at the same time; they are
        preprocessed there. Their bytes are read before, so that a slow download delays no other request.

        Raises:
            ApiError: 400, with the `param` of the invalid image.
        """
        self._check_count(len(image_urls), image_urls[-1].param if image_urls else None)
        if not image_urls:
            yield []
            return
        encoded = await _together(
            [self._naming(image_url, self._fetcher.read(image_url.url)) for image_url in image_urls]
        )
        async with self._preparing:
            images = await _together(
                [
                    self._naming(image_url, self._decode(data, image_url))
                    for image_url, data in zip(image_urls, encoded, strict=True)
                ]
            )
            self._check_count(sum(map(len, images)), image_urls[-1].param)
            yield images

    async def close(self) -> None:
        """Take no more images."""
        self._fetcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check_count(self, count: int, param: str | None) -> None:
        if count > self.limits.max_images:
            raise ApiError(
                400,
                f"found {count} images in a request (pages of PDFs are counted); expected at most "
                f"{self.limits.max_images}; leave some out",
                param=param,
                code="too_many_images",
            )

    async def _decode(self, data: bytes, image_url: ImageUrl) -> list[Image.Image]:
        pdf, declared = is_pdf(data), _declared_type(image_url.url)
        if declared and (declared == "application/pdf") != pdf and (pdf or declared.startswith("application/pdf")):
            raise ImageError(f"found {'a PDF' if pdf else 'no PDF'} declared as {declared}; declare what the data is")
        budget = self.limits.budget(image_url.detail)
        if pdf:
            limits = PdfLimits(self.limits.max_pdf_pages, self.limits.longest_edge, self.limits.pdf_timeout)
            async with self._drawing:
                pages = await draw_pages(data, limits)
            return [await self._in_thread(self._fitted, page, budget) for page in pages]
        return [await self._in_thread(self._decode_one, data, budget)]

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _decode_one(self, data: bytes, budget: int | None) -> Image.Image:
        if data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
            raise ImageError("found SVG, XML or HTML; expected an image made of pixels; draw it and send a PNG")
        return self._fitted(load_image(data, limits=self.limits.of_images()), budget)

    def _fitted(self, image: Image.Image, budget: int | None) -> Image.Image:
        """The image, made smaller if it would take more tokens than its budget."""
        width, height = image.size
        longest, shortest = max(image.size), min(image.size)
        if longest > self.limits.longest_edge and shortest * self.limits.longest_edge < longest:
            raise ImageError(
                f"found an image of {width}x{height} pixels; scaled to {self.limits.longest_edge} pixels, which the "
                "model sees, it is less than one pixel thin; cut it into pieces"
            )
        size = size_within(width, height, budget, self.limits.tokens_of)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    async def _naming(self, image_url: ImageUrl, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; errors name the image."""
        try:
            return await work
        except ImageError as error:
            code = (
                "image_too_large" if isinstance(error, ImageTooLarge)
                else "image_not_fetched" if isinstance(error, ImageFetchError)
                else "invalid_image"
            )  # fmt: skip
            raise ApiError(400, str(_for_clients(error)), param=image_url.param, code=code) from error


def size_within(width: int, height: int, budget: int | None, tokens_of: Callable[[int, int], int]) -> tuple[int, int]:
    """The largest (width, height) of the same shape, at most as large as given, that takes no more tokens than that.

    >>> size_within(640, 480, 320, lambda width, height: -(-height // 16) * (-(-width // 16) + 1))
    (320, 240)
    """
    if budget is None or tokens_of(width, height) <= budget:
        return width, height
    low, high = 0.0, 1.0  # 16 halvings: to less than a pixel of any image that is read
    for _ in range(16):
        middle = (low + high) / 2
        if tokens_of(max(round(width * middle), 1), max(round(height * middle), 1)) <= budget:
            low = middle
        else:
            high = middle
    return max(round(width * low), 1), max(round(height * low), 1)


class Fetcher:
    """Reads URLs; downloads have threads of their own, so that slow ones delay nothing but other downloads."""

    def __init__(self, limits: ImageLimits, downloads: int = 8) -> None:
        self._limits = limits
        self._downloads = ThreadPoolExecutor(downloads, thread_name_prefix="pixtral-download")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pixtral-read")

    async def read(self, url: str) -> bytes:
        """The bytes behind a URL.

        Raises:
            ImageTooLarge: more than `max_bytes`.
            ImageFetchError: refused, unreachable, too slow, redirected too often, or not declared as an image.
            ImageError: not valid base64.
        """
        declared = _declared_type(url)
        if declared is None and not _REMOTE.match(url):
            raise _refused(url)
        if declared is None and not self._limits.allow_remote:
            raise ImageFetchError(
                f"found {shortened(url)}; this server does not fetch images; send the image as a data: URI, or "
                "start the server with --allow-remote-images"
            )
        if declared is not None and not (declared in _UNTYPED or declared.startswith(MEDIA_TYPES)):
            raise ImageFetchError(
                f"found a data: URI of type {shortened(declared)}; expected an image type or application/pdf"
            )
        threads = self._downloads if declared is None else self._threads
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, read_bytes, url.strip(), self._limits)
        except ImageError as error:
            raise _for_clients(error) from error

    def close(self) -> None:
        """Take no more URLs; running downloads end at their time limit."""
        self._downloads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _declared_type(url: str) -> str | None:
    """The media type of a data: URI, perhaps ""; None for every other URL."""
    found = _DATA.match(url[:200])
    return None if found is None else found[1].strip().lower()


def _for_clients(error: ImageError) -> ImageError:
    """The same error without advice for the operator and without private addresses."""
    message = _NOT_FOR_CLIENTS.sub("", str(error))
    return type(error)(_PRIVATE_ADDRESS.sub("leads to an address that is not public", message))


def _refused(url: str) -> ImageFetchError:
    scheme = _SCHEME.match(url[:40])
    kind = f"the scheme {scheme[1].lower()}:" if scheme else "no scheme"
    return ImageFetchError(
        f"found {shortened(url)}, an address with {kind}; expected a data: URI (data:image/png;base64,...) or "
        "http(s)://; files of the server are never opened"
    )


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
