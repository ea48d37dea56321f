"""Conversions to 8-bit RGB: PIL images of every mode, upright and over white; NumPy arrays and torch tensors."""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pixtral.errors import ImageError
from pixtral.images.decode import damage_is_an_image_error

ChannelOrder = Literal["channels_first", "channels_last"]
_CHANNELS = (1, 3, 4)
_STRIP_BYTES = 1 << 18
_WIDE = ("I", "F")  # and every I;16


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; unreadable EXIF data counts as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, OSError, struct.error):
        return image
    if orientation not in range(2, 9):
        return image  # exif_transpose would copy it
    turned = image.copy()
    exif = Image.Exif()  # this tag alone, since exif_transpose fails if it cannot write the others back
    exif[ExifTags.Base.Orientation] = orientation
    turned.info["exif"] = exif.tobytes()
    ImageOps.exif_transpose(turned, in_place=True)
    del turned.info["exif"]
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; the same object when it is RGB already and opaque.

    Transparency, be it a channel, a palette entry or a colour key, is composited over white. 16-bit grey is scaled
    to 8 bits (65535 becomes 255). Modes I and F have no fixed range, so it is inferred from the largest value: for F
    up to 1 is 0..1, then for both up to 255 is 0..255, and up to 65535 is 0..65535.

    Raises:
        ImageError: for a mode without a conversion to RGB (LAB), or grey values outside every range.
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


def is_array(value: object) -> bool:
    """Whether the value is a NumPy array or a torch tensor, without importing torch."""
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: object) -> bool:
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def is_float(value: object) -> bool:
    """Whether an array or tensor holds floating point values, which `image_from_array` takes as 0..1."""
    return is_array(value) and "float" in str(getattr(value, "dtype", ""))


def to_numpy(value: object) -> np.ndarray:
    """The values of an array or of a tensor on any device; bfloat16 becomes float32. No copy where none is needed."""
    if isinstance(value, np.ndarray):
        return value
    import torch

    if not isinstance(value, torch.Tensor):
        raise ImageError(f"found a {type(value).__name__}; expected a NumPy array or a torch tensor")
    tensor = value.detach().cpu()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def pixels_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB image, writable.

    Pillow exports an image through two buffers of its full size, which costs more than decoding it; in strips that
    stay in the cache it takes a quarter of the time.
    """
    width, height = image.size
    rows = max(_STRIP_BYTES // (4 * width), 1)
    if rows >= height:
        return np.array(image)
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        out[top : top + rows] = np.asarray(image.crop((0, top, width, min(top + rows, height))))
    return out


def image_from_array(value: object, channel_order: ChannelOrder | None = None) -> Image.Image:
    """An array or tensor as a PIL image of mode L, RGB or RGBA.

    Args:
        value: (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels (grey, RGB, RGBA). uint8 and other integers
            mean 0..255, uint16 means 0..65535, bool means black and white, floating point means 0..1.
        channel_order: needed when both the first and the last side could be the channels.

    Raises:
        ImageError: another shape or dtype, an ambiguous layout, or values outside their range. Floating point beyond
            0..1 is refused instead of guessed: it may be 0..255, or already normalised.
    """
    array = _channels_last(to_numpy(value), channel_order)
    array = _eight_bits(array)
    if array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _channels_last(array: np.ndarray, channel_order: ChannelOrder | None) -> np.ndarray:
    """(H, W) or (C, H, W) or (H, W, C) to (H, W, C)."""
    if array.size == 0:
        raise ImageError(f"found an array of shape {array.shape}, which is empty; expected at least one pixel")
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ImageError(f"found an array of shape {array.shape}; expected (H, W), (H, W, C) or (C, H, W)")
    first, last = array.shape[0] in _CHANNELS, array.shape[-1] in _CHANNELS
    if channel_order is None:
        if first and last:
            raise ImageError(
                f"found an array of shape {array.shape}, whose channels may come first or last; "
                "pass input_data_format='channels_first' or 'channels_last'"
            )
        channel_order = "channels_first" if first else "channels_last"
    elif channel_order not in ("channels_first", "channels_last"):
        raise ImageError(f"input_data_format is {channel_order!r}; expected 'channels_first' or 'channels_last'")
    if not (first if channel_order == "channels_first" else last):
        raise ImageError(
            f"found an array of shape {array.shape}, taken as {channel_order}; expected 1, 3 or 4 channels"
        )
    return array.transpose(1, 2, 0) if channel_order == "channels_first" else array


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Values to uint8, by dtype."""
    if array.dtype == np.uint8:
        return array
    kind = array.dtype.kind
    if kind == "b":
        return np.where(array, np.uint8(255), np.uint8(0))
    if array.dtype == np.uint16:
        return scale_to_8_bits(array)
    if kind not in "iuf":
        raise ImageError(f"found an array of dtype {array.dtype}; expected uint8 (0..255) or floating point (0..1)")
    smallest, largest = float(array.min()), float(array.max())
    limit = 1 if kind == "f" else 255
    if not (smallest >= 0 and largest <= limit):  # also refuses NaN
        hint = (
            "if it is 0..255, pass array.astype('uint8'); if it is normalised, undo that first"
            if kind == "f"
            else "for 16-bit grey pass array.astype('uint16'), otherwise scale it"
        )
        raise ImageError(
            f"found {array.dtype} values from {smallest:g} to {largest:g}; expected 0..{limit} for this dtype; {hint}"
        )
    scaled: np.ndarray = np.rint(array.astype(np.float32) * 255) if kind == "f" else array
    eight: np.ndarray = scaled.astype(np.uint8)
    return eight
