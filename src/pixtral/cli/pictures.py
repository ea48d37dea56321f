"""Pictures named on the command line: opened before anything slow begins, and named when they cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixtral.errors import ImageError

if TYPE_CHECKING:
    import os

    from PIL.Image import Image

    from pixtral.images.limits import ImageLimits


def open_picture(source: str | os.PathLike[str], limits: ImageLimits | None = None) -> Image:
    """The picture of a path or URL.

    Raises:
        ImageError: it cannot be had or read; the message names the source.
    """
    from pixtral.images.limits import ImageLimits
    from pixtral.images.source import load_image

    try:
        return load_image(source, limits=limits or ImageLimits())
    except ImageError as error:
        name = shortened(str(source))
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def shortened(source: str) -> str:
    """A source fit for a table or a message: data URIs and base64 text can be very long."""
    return source if len(source) <= 120 else f"{source[:60]}…"
