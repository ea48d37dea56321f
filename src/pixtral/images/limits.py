"""ImageLimits: the size, time and origin of images that are loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What `load_image` accepts. The defaults suit a program that chooses its own images; a server tightens them.

    Attributes:
        max_pixels: width x height, read from the header before anything is decoded. Decoding takes 3 to 4 bytes each.
        max_bytes: of the encoded image, for files, bytes, base64 text and downloads alike.
        timeout: seconds for a download, from the first connection to the last byte, redirects included.
        max_redirects: how many times a URL may point elsewhere.
        allow_remote: whether http and https URLs are fetched.
        allow_private: whether URLs may lead to addresses that are not public (loopback, 10.0.0.0/8, ...).
        allow_files: whether paths are opened.
        formats: Pillow's names of the formats that are read; None means all but programs (EPS, WMF).
        media_types: beginnings of the types that a download may be declared as ("image/"); None means any. An answer
            without a type, or declared as mere bytes, passes.
    """

    max_pixels: int = 134_217_728
    max_bytes: int = 268_435_456
    timeout: float = 30.0
    max_redirects: int = 3
    allow_remote: bool = True
    allow_private: bool = True
    allow_files: bool = True
    formats: tuple[str, ...] | None = None
    media_types: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"ImageLimits got {name}={getattr(self, name)}; expected a positive number")
        if self.max_redirects < 0:
            raise ValueError(f"ImageLimits got max_redirects={self.max_redirects}; expected 0 or more")


def shortened(text: str, length: int = 80) -> str:
    """The text quoted for an error message, without the middle of long ones.

    >>> shortened("a" * 100, 10)
    "'aaaaa...aaaaa' (100 characters)"
    """
    if len(text) <= length:
        return repr(text)
    return f"{text[: length // 2] + '...' + text[-(length // 2) :]!r} ({len(text)} characters)"
