"""PDF pages as images, drawn by a separate process (`pdf_child.py`) that may crash without harm."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from pixtral.errors import ImageError, ImageTooLarge, MissingDependency

_CHILD = Path(__file__).with_name("pdf_child.py")
_INHERITED = ("LD_LIBRARY_PATH", "PATH", "SYSTEMROOT")  # not all of the environment: the server's key may be in it


@dataclasses.dataclass(frozen=True, slots=True)
class PdfLimits:
    """Limits on one file.

    Attributes:
        max_pages: a longer file is refused, not cut.
        longest_edge: of each page in pixels; pages have no pixels of their own.
        timeout: seconds for the whole file.
        max_memory: bytes of address space of the process.
    """

    max_pages: int = 8
    longest_edge: int = 1024
    timeout: float = 20.0
    max_memory: int = 1 << 30


def is_pdf(data: bytes) -> bool:
    """Whether the bytes begin as a PDF does; white space before it is common."""
    return data[:64].lstrip(b"\xef\xbb\xbf \t\r\n\0").startswith(b"%PDF-")


async def draw_pages(data: bytes, limits: PdfLimits) -> list[Image.Image]:
    """Every page of a file, in RGB.

    Raises:
        ImageTooLarge: too many pages, too slow, or too much memory.
        ImageError: damaged, without pages, or locked by a password.
        MissingDependency: pypdfium2 is not installed.
    """
    if importlib.util.find_spec("pypdfium2") is None:
        raise MissingDependency("found a PDF, but pypdfium2 is not installed; pip install 'pixtral[server]'")
    numbers = (limits.max_pages, limits.longest_edge, max(int(limits.timeout), 1), limits.max_memory)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(_CHILD),
        *map(str, numbers),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in _INHERITED if name in os.environ},
    )
    try:
        drawn, _ = await asyncio.wait_for(child.communicate(data), limits.timeout)
    except asyncio.TimeoutError:
        raise ImageTooLarge(
            f"found a PDF whose pages were not drawn within {limits.timeout:g} seconds; send them as images"
        ) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return await asyncio.to_thread(_images, drawn, limits)


def _images(drawn: bytes, limits: PdfLimits) -> list[Image.Image]:
    """The images that the child has written."""
    head, at = _line(drawn, 0)
    if head.get("error") == "pages":
        found = head["found"]
        raise ImageTooLarge(
            f"found a PDF of {found} pages; expected 1 to {limits.max_pages}; send the pages that matter"
        )
    pages: list[Image.Image] = []
    for _ in range(int(head.get("pages", 0))):
        size, at = _line(drawn, at)
        width, height = int(size.get("width", 0)), int(size.get("height", 0))
        end = at + width * height * 3
        if not at < end <= len(drawn):
            head = size
            break
        pages.append(Image.frombytes("RGB", (width, height), drawn[at:end]))
        at = end
    if head.get("error") == "password":
        raise ImageError("found a PDF that is locked by a password; send one that is not")
    if not pages or len(pages) < int(head.get("pages", 0)) or "error" in head:
        raise ImageError("found a PDF that is damaged or too complex to draw; send its pages as images")
    return pages


def _line(drawn: bytes, at: int) -> tuple[dict[str, Any], int]:
    """A line of JSON and the offset behind it; {} where the output ends."""
    end = drawn.find(b"\n", at, at + 200)
    return ({}, at) if end < 0 else (json.loads(drawn[at:end]), end + 1)
