"""What a caller passes as `images`: one, a list, or a list per prompt, as a flat list of decoded RGB images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from pixtral.errors import ImageError
from pixtral.images.arrays import ChannelOrder, is_array, is_float
from pixtral.images.limits import ImageLimits
from pixtral.images.rgb import to_rgb
from pixtral.images.source import ImageSource, open_image

ImageInput: TypeAlias = "ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource]]"


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An RGB image, and whether it came as floating point values in 0..1."""

    image: Image.Image
    was_float: bool


def flatten_images(images: ImageInput) -> list[ImageSource]:
    """One image, a list of images, or a list of lists (one per prompt, some may be empty), in order.

    Arrays and tensors of four axes count as a list of their first axis.

    Raises:
        ImageError: nothing in it, deeper nesting, or images beside lists.
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


def _unstacked(image: object) -> list[ImageSource]:
    """An array of four axes as its images; anything else as it is."""
    if is_array(image) and getattr(image, "ndim", 0) == 4:
        return list(image)  # type: ignore[call-overload, no-any-return]
    return [image]  # type: ignore[list-item]


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
