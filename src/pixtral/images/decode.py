"""Encoded bytes to a decoded PIL image: identify, read the size, refuse or decode."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile

from pixtral.errors import ImageError, ImageTooLarge
from pixtral.images.limits import ImageLimits

# PostScript and Windows metafiles are programs: decoding EPS starts Ghostscript on untrusted input.
_REFUSED_FORMATS = frozenset({"EPS", "WMF"})

# Exceptions that Pillow's plugins raise on damaged data, found by fuzzing.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)


def decode(data: bytes, limits: ImageLimits, page: int = 0) -> Image.Image:
    """Decode one frame or page of an encoded image, in the mode in which it is stored.

    Args:
        data: the whole file.
        limits: `max_bytes` and `max_pixels` are checked before decoding.
        page: of a multi-page file or an animation, from 0.

    Raises:
        ImageError: empty, not an image, corrupt, truncated, or without that page.
        ImageTooLarge: beyond a limit.
    """
    if not data:
        raise ImageError("found 0 bytes; expected an encoded image (PNG, JPEG, WebP, GIF, TIFF, ...)")
    if len(data) > limits.max_bytes:
        raise too_many_bytes(f"{len(data):,}", limits)
    image = _identify(data, limits)
    check_size(image.size, limits)
    if page:
        seek(image, page)
        check_size(image.size, limits)
    return load(image)


def _identify(data: bytes, limits: ImageLimits) -> Image.Image:
    """Parse the header only.

    Image.open does the same and then compares the size with the process-wide Image.MAX_IMAGE_PIXELS, by which it
    warns or fails; here each call has its own limit, so the registered plugins are asked directly.
    """
    Image.preinit()
    formats = list(Image.ID)
    if image := _first_that_opens(data, formats, limits):
        return image
    Image.init()
    if image := _first_that_opens(data, [name for name in Image.ID if name not in formats], limits):
        return image
    raise ImageError(
        f"found {len(data):,} bytes that begin with {data[:12]!r}, which is no image format known here or a corrupt "
        f"header; expected {', '.join(limits.formats or ('PNG', 'JPEG', 'WebP', 'GIF', 'TIFF', 'BMP', '...'))}"
    )


def _first_that_opens(data: bytes, formats: list[str], limits: ImageLimits) -> Image.Image | None:
    for name in formats:
        if name in _REFUSED_FORMATS or (limits.formats is not None and name not in limits.formats):
            continue
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is None or accept(data[:16])
            if accepted is True or (accepted and not isinstance(accepted, str)):  # a str is a warning
                image: ImageFile.ImageFile = factory(io.BytesIO(data), "")
                return image
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # the plugin does not recognise the file
        except Image.DecompressionBombError as error:
            raise _beyond_pillow(error) from error
        except _DAMAGE as error:
            raise ImageError(
                f"found a {name} image with a corrupt header ({error}); expected an intact file"
            ) from error
    return None


def check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    """Refuse an empty image, or one with more pixels than allowed."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"found an image of {width}x{height} pixels; expected at least 1x1")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"found an image of {width}x{height} = {width * height:,} pixels; expected at most {limits.max_pixels:,}; "
            "scale it down or raise ImageLimits.max_pixels"
        )


def seek(image: Image.Image, page: int) -> None:
    """Go to a page, counted from 0; ImageError if there is none."""
    if page < 0:
        raise ImageError(f"page is {page}; pages are counted from 0")
    with damage_is_an_image_error(image):
        count = getattr(image, "n_frames", 1)
        if page >= count:
            raise ImageError(f"page {page} was asked for, but the image has {count}; they are counted from 0")
        image.seek(page)


def load(image: Image.Image) -> Image.Image:
    """Decode the pixels; ImageError when the data is damaged."""
    with damage_is_an_image_error(image):
        image.load()
    return image


@contextmanager
def damage_is_an_image_error(image: Image.Image) -> Iterator[None]:
    """Turn what Pillow raises on damaged data into an ImageError that names the image."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _beyond_pillow(error) from error
    except _DAMAGE as error:
        kind = getattr(image, "format", None) or image.mode
        width, height = image.size
        raise ImageError(
            f"found a {width}x{height} {kind} image whose data is truncated or corrupt ({error}); "
            "expected an intact file; copy or download it again"
        ) from error


def _beyond_pillow(error: Image.DecompressionBombError) -> ImageTooLarge:
    """For the formats (WebP, frames of GIF) in which Pillow applies its own process-wide limit as well."""
    return ImageTooLarge(f"found an image or a frame in it beyond Pillow's own limit ({error}); scale it down")


def too_many_bytes(found: str, limits: ImageLimits) -> ImageTooLarge:
    """The error for an encoded image beyond `max_bytes`."""
    return ImageTooLarge(
        f"found {found} bytes of encoded image; expected at most {limits.max_bytes:,}; "
        "compress or scale the image, or raise ImageLimits.max_bytes"
    )
