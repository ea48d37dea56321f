"""Images that people send, well and ill meant: PNGs that lie, bombs, files of two kinds, PDFs."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pypdfium2  # type: ignore[import-untyped]
from PIL import Image


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def encoded(width: int, height: int, kind: str = "PNG", seed: int = 0) -> bytes:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes | None = None, *extra: bytes) -> bytes:
    """A grey PNG; `pixels` are its compressed lines, by default too few."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = zlib.compress(bytes(1000)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in side * side / 1000 bytes: it can be decoded whole, which it must not."""
    compressor = zlib.compressobj(9)
    line = bytes(side + 1)
    lines = b"".join(compressor.compress(line) for _ in range(side)) + compressor.flush()
    return png(side, side, lines)


def text_bomb() -> bytes:
    """A small image with a text chunk of 60 MB, compressed to 60 kB."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(60_000_000), 9))
    return png(8, 8, zlib.compress(bytes(72)), text)


def huge_exif(size: int) -> bytes:
    """A JPEG whose EXIF data spreads over segments of 64 kB, and claims four billion entries."""
    plain = encoded(32, 24, "JPEG")
    block = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x04\x00\xff\xff\xff\xff\x08\x00\x00\x00" * 5000
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    return plain[:2] + segment * (size // len(segment)) + plain[2:]


def pdf(*sizes: tuple[int, int]) -> bytes:
    """Empty pages of these sizes."""
    document = pypdfium2.PdfDocument.new()
    for size in sizes:
        document.new_page(*size).close()
    buffer = io.BytesIO()
    document.save(buffer)
    document.close()
    return buffer.getvalue()


def drawn_pdf(content: bytes, width: int = 200, height: int = 100) -> bytes:
    """One page that a content stream draws."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %d %d]/Contents 4 0 R>>" % (width, height),
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + b"trailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % start)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"


def hostile() -> dict[str, tuple[str, str]]:
    """Name: (data URI, what the refusal says)."""
    good = encoded(64, 48)
    jpeg = encoded(64, 48, "JPEG")
    return {
        "empty": (data_uri(b""), "0 bytes"),
        "truncated png": (data_uri(good[: len(good) // 2]), "truncated or corrupt"),
        "truncated jpeg": (data_uri(jpeg[: len(jpeg) // 2]), "truncated or corrupt"),
        "header only": (data_uri(good[:20]), "corrupt"),
        "noise": (data_uri(bytes(range(256)) * 40), "no image format known here"),
        "announced bomb": (data_uri(png(60_000, 60_000)), "3,600,000,000 pixels"),
        "real bomb": (data_uri(bomb(8_000)), "64,000,000 pixels"),
        "text bomb": (data_uri(text_bomb()), "corrupt"),
        "svg": (data_uri(SVG, "image/svg+xml"), "SVG, XML or HTML"),
        "eps": (data_uri(EPS, "image/x-eps"), "no image format known here"),
        "html and png": (data_uri(b"<html><script>alert(1)</script>" + good), "SVG, XML or HTML"),
        "pdf and png": (data_uri(b"%PDF-1.4\n" + good), "a PDF declared as image/png"),
        "png as pdf": (data_uri(good, "application/pdf"), "no PDF declared as application/pdf"),
        "broken pdf": (data_uri(b"%PDF-1.4\nnothing", "application/pdf"), "PDF that is damaged"),
        "pdf of 9 pages": (data_uri(pdf(*[(50, 50)] * 9), "application/pdf"), "PDF of 9 pages"),
        "thin": (data_uri(png(65_535, 1, zlib.compress(bytes(65_536)))), "less than one pixel thin"),
        "thin and high": (data_uri(png(1, 65_535, zlib.compress(bytes(2 * 65_535)))), "less than one pixel thin"),
        "no pixels": (data_uri(png(0, 10)), "corrupt|at least 1x1"),
        "huge exif": (data_uri(huge_exif(22_000_000), "image/jpeg"), "bytes of encoded image"),
        "not base64": ("data:image/png;base64,%%%", "base64"),
        "text": ("data:text/plain;base64,aGVsbG8=", "no image format known here"),
        "file": ("file:///etc/passwd", "never opened"),
        "path": ("/etc/passwd", "never opened"),
        "remote": ("http://127.0.0.1:9/a.png", "does not fetch images"),
    }
