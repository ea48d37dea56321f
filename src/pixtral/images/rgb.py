"""Any PIL image, upright and in 8-bit RGB: rotation by EXIF, alpha over white, wide grey scaled."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from pixtral.errors import ImageError
from pixtral.images.decode import damage_is_an_image_error

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDE = ("I", "F")  # and every I;16


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; unreadable EXIF data counts as none."""
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, OSError, struct.error):
        return image
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info.pop("exif", None)  # what has been done must not be done again
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; the same object when it is RGB already and opaque.

    Transparency, be it a channel, a palette entry or a colour key, is laid over white. Grey of 16 bits is scaled to
    8 (65535 becomes 255). Modes I and F do not say their range, so it is taken from the largest value: for F up to 1
    is 0..1, then for both up to 255 is 0..255, and up to 65535 is 0..65535.

    Raises:
        ImageError: for a mode without a meaning in RGB (LAB), or grey values outside every range.
    """
    with damage_is_an_image_error(image):
        return _converted(image)


def _converted(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE or image.mode.startswith("I;16"):
        return _wide_grey(image).convert("RGB")
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(
            f"found an image of mode {image.mode}, which has no conversion to RGB; convert it before"
        ) from error


def _wide_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as mode L."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = scale_to_8_bits(values.astype(np.uint16, copy=False))
    else:
        largest, smallest = float(values.max()), float(values.min())
        if not (smallest >= 0 and largest <= 65535):  # also refuses NaN
            raise ImageError(
                f"found grey values from {smallest:g} to {largest:g} in an image of mode {image.mode}; "
                "expected 0..65535; scale them to 0..255 and convert to mode L"
            )
        if image.mode == "F" and largest <= 1:
            values = np.rint(values * 255)
        grey = np.rint(values).astype(np.uint8) if largest <= 255 else scale_to_8_bits(values)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(values == key, np.uint8(255), grey)
    return Image.fromarray(grey)


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values (any shape, 0..65535) as uint8, to the nearest: 65535 = 255 x 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
