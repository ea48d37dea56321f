"""Loading images: any source (path, URL, bytes, array, ...), or lists of them, to decoded 8-bit RGB images."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from pixtral.errors import ImageError, ImageFetchError
from pixtral.images.convert import ChannelOrder, image_from_array, is_array, is_float, to_rgb, upright
from pixtral.images.decode import check_size, damage_is_an_image_error, decode, load, seek, too_many_bytes
from pixtral.images.fetch import fetch
from pixtral.images.limits import ImageLimits, shortened

if TYPE_CHECKING:
    import torch


@runtime_checkable
class BinaryFile(Protocol):
    """Anything to read bytes from: an open file, io.BytesIO, the `raw` of a requests response."""

    def read(self, size: int = ..., /) -> bytes: ...


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | torch.Tensor"
)
ImageInput: TypeAlias = "ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource]]"

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):(//)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_DEFAULT_LIMITS = ImageLimits()


def load_image(
    source: ImageSource,
    *,
    limits: ImageLimits = _DEFAULT_LIMITS,
    page: int = 0,
    input_data_format: ChannelOrder | None = None,
) -> Image.Image:
    """Read an image as 8-bit RGB, upright and over white. The pixels do not depend on the kind of source.

    Args:
        source: a path, an http(s) URL, a data URI, base64 text, encoded bytes, a file object, a PIL image, or an array
            or tensor (see `image_from_array` for shapes and value ranges).
        limits: on pixels, bytes, time and places; see `ImageLimits`.
        page: of a multi-page TIFF or an animation, from 0. A PIL image stays at its current page when this is 0.
        input_data_format: "channels_first" or "channels_last", for arrays whose shape is ambiguous.

    Returns:
        an image of mode RGB. For a PIL image in RGB that needs no change this is the same object.

    Raises:
        ImageError: what was found is not a readable image; ImageTooLarge and ImageFetchError are kinds of it.
    """
    return to_rgb(open_image(source, limits=limits, page=page, input_data_format=input_data_format))


def open_image(
    source: ImageSource,
    *,
    limits: ImageLimits = _DEFAULT_LIMITS,
    page: int = 0,
    input_data_format: ChannelOrder | None = None,
) -> Image.Image:
    """As `load_image`, but in the mode in which the image is stored."""
    if isinstance(source, Image.Image):
        return upright(_loaded(source, limits, page))
    if is_array(source):
        image = image_from_array(source, input_data_format)
        check_size(image.size, limits)
        return image
    image = decode(read_bytes(source, limits), limits, page)
    with damage_is_an_image_error(image):
        return upright(image)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An RGB image, and whether it came as floating point values in 0..1."""

    image: Image.Image
    was_float: bool


def flatten_images(images: ImageInput) -> list[ImageSource]:
    """One image, a list of images, or a list of lists (one per prompt, some may be empty), in order.

    Arrays and tensors of four axes count as a list of their first axis.

    Raises:
        ImageError: empty, nested deeper, or images mixed with lists.
    """
    if is_array(images) or not isinstance(images, (list, tuple)):
        return _unstacked(images)
    if not images:
        raise ImageError("found an empty list of images; expected at least one, or leave images out")
    nested = [isinstance(item, (list, tuple)) for item in images]
    if any(nested) and not all(nested):
        at = nested.index(not nested[0])
        raise ImageError(
            f"found images beside lists of images (entries 0 and {at} differ); expected a flat list of images, "
            "or one list for each prompt"
        )
    flat: list[ImageSource] = []
    for item in images:
        for image in item if isinstance(item, (list, tuple)) else [item]:
            if isinstance(image, (list, tuple)):
                raise ImageError(
                    "found a list of lists of lists of images; expected a flat list of images, "
                    "or one list for each prompt"
                )
            flat.extend(_unstacked(image))
    if not flat:
        raise ImageError("found only empty lists of images; expected at least one image, or leave images out")
    return flat


def load_all(
    images: ImageInput, *, limits: ImageLimits, input_data_format: ChannelOrder | None, convert: bool
) -> list[LoadedImage]:
    """Decode every image; an error names the image by its place in the flat list.

    Args:
        images: as in `flatten_images`.
        limits: for each of them.
        input_data_format: for arrays.
        convert: whether other modes are brought to RGB; otherwise they are refused.
    """
    sources, loaded = flatten_images(images), []
    for index, source in enumerate(sources):
        try:
            image = open_image(source, limits=limits, input_data_format=input_data_format)
            if not convert and image.mode != "RGB":
                raise ImageError(f"found mode {image.mode}, but do_convert_rgb is False; convert it or leave that out")
            loaded.append(LoadedImage(to_rgb(image), is_float(source)))
        except ImageError as error:
            if len(sources) == 1:
                raise
            raise type(error)(f"image {index} of {len(sources)}: {error}") from error
    return loaded


def _unstacked(image: object) -> list[ImageSource]:
    """An array of four axes as its images; anything else as it is."""
    if is_array(image) and getattr(image, "ndim", 0) == 4:
        return list(image)  # type: ignore[call-overload, no-any-return]
    return [image]  # type: ignore[list-item]


def _loaded(image: Image.Image, limits: ImageLimits, page: int) -> Image.Image:
    """A PIL image with its pixels decoded, at the page asked for; the caller's own keeps its page."""
    check_size(image.size, limits)
    if not page:
        return load(image)
    current = getattr(image, "tell", lambda: 0)()
    seek(image, page)
    check_size(image.size, limits)
    copy = load(image).copy()
    image.seek(current)
    return copy


def read_bytes(source: object, limits: ImageLimits) -> bytes:
    """The encoded bytes of a source other than pixels; `limits.max_pixels` is checked when decoding."""
    if isinstance(source, str):
        return _read_text(source, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return _read_path(Path(source), limits)
    if isinstance(source, BinaryFile):
        if callable(rewind := getattr(source, "seek", None)) and _is_seekable(source):
            rewind(0)
        return _read_limited(source.read, limits)
    raise ImageError(
        f"found a {type(source).__name__}; expected an image: a path, URL, data URI, base64 text, bytes, "
        "file object, PIL image, NumPy array or torch tensor"
    )


def _is_seekable(file: object) -> bool:
    seekable: Callable[[], bool] | None = getattr(file, "seekable", None)
    return True if seekable is None else bool(seekable())


def _read_text(text: str, limits: ImageLimits) -> bytes:
    """The bytes that a string refers to, tried as URL, data URI, path and base64 text, in this order."""
    scheme = _SCHEME.match(text[:32])
    if scheme and scheme[1].lower() in ("http", "https") and scheme[2]:
        return fetch(text, limits)
    if scheme and scheme[1].lower() == "data":
        return _read_data_uri(text, limits)
    if scheme and scheme[1].lower() == "file":
        raise ImageFetchError(f"found {shortened(text)}; file: URLs are not opened; pass the path itself")
    if scheme and scheme[2]:
        raise ImageFetchError(f"found {shortened(text)}; expected a URL that begins with http:// or https://")
    if limits.allow_files and os.path.isfile(text):
        return _read_path(Path(text), limits)
    compact = "".join(text.split())
    if _BASE64.fullmatch(compact):
        return _from_base64(compact, limits)
    if not limits.allow_files:
        raise ImageError(f"found {shortened(text)}; paths are not opened here (ImageLimits.allow_files is False)")
    if os.path.isdir(text):
        raise ImageError(f"found {shortened(text)}, a folder; expected the path of one image in it")
    raise ImageError(
        f"found {shortened(text)}; expected the path of an existing file, a URL, a data URI or base64 text"
    )


def _read_path(path: Path, limits: ImageLimits) -> bytes:
    if not limits.allow_files:
        raise ImageError(f"found the path {str(path)!r}; paths are not opened here (ImageLimits.allow_files is False)")
    try:
        with open(path, "rb") as file:
            return _read_limited(file.read, limits)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"found no file at {str(path)!r}; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"found {str(path)!r}, which cannot be read ({error}); expected a readable image file") from (
            error
        )


def _read_limited(read: Callable[[int], bytes], limits: ImageLimits) -> bytes:
    """Everything up to the byte limit; one byte more is an error."""
    parts: list[bytes] = []
    room = limits.max_bytes + 1
    while room > 0:
        part = read(min(room, 1 << 24))
        if not isinstance(part, (bytes, bytearray)):
            raise ImageError(f"read() of the file object gave {type(part).__name__}; open it in binary mode ('rb')")
        if not part:
            return b"".join(parts)
        parts.append(bytes(part))
        room -= len(part)
    raise too_many_bytes(f"more than {limits.max_bytes:,}", limits)


def _read_data_uri(uri: str, limits: ImageLimits) -> bytes:
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ImageError(f"found the data URI {shortened(uri)}; expected data:image/...;base64,<data>")
    if header.rstrip().lower().endswith(";base64"):
        return _from_base64("".join(payload.split()), limits)
    return unquote_to_bytes(payload)


def _from_base64(text: str, limits: ImageLimits) -> bytes:
    """Standard and URL-safe alphabets, padded or not."""
    if len(text) // 4 * 3 > limits.max_bytes + 3:
        raise too_many_bytes(f"about {len(text) // 4 * 3:,}", limits)
    bare = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"found {shortened(text)}, which is not valid base64 ({error})") from error
