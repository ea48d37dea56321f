"""Images in mistral-common's prompts: an image encoder in place of mistral-common's own, which needs OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pixtral.errors import PromptError
from pixtral.images.geometry import expand, image_grid

if TYPE_CHECKING:
    from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoding, SpecialImageIDs
    from PIL.Image import Image

PLACEHOLDER = "pixtral:placeholder"
"""URL of an image that is filled in later: one image token, no pixels."""


class NativeImageEncoder:
    """Called by mistral-common for every image part: token ids from `geometry`, pixels from `NativeImageProcessor`.

    Args:
        image_config: patch size, largest side and merge size, as the tokenizer's file has them.
        special_ids: of the image, break and end tokens.
    """

    def __init__(self, image_config: ImageConfig, special_ids: SpecialImageIDs) -> None:
        self.image_config = image_config
        self.special_ids = special_ids
        self._processor: Any = None

    @property
    def mm_config(self) -> ImageConfig:
        """mistral-common's older name of `image_config`."""
        return self.image_config

    @property
    def image_token(self) -> int:
        """The id that stands for one patch."""
        return self.special_ids.img

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        """The tokens and the pixels, (3, H, W) float32, of one image part."""
        from mistral_common.protocol.instruct.chunk import ImageChunk
        from mistral_common.tokens.tokenizers.image import ImageEncoding

        if isinstance(content, ImageChunk):
            image = content.image
        elif content.get_url() == PLACEHOLDER:
            return ImageEncoding(tokens=[self.special_ids.img], image=np.zeros((3, 0, 0), dtype=np.float32))
        else:
            from pixtral.images.source import load_image

            image = load_image(content.get_url())
        ids = self.special_ids
        return ImageEncoding(
            tokens=expand(self._grid(*image.size), ids.img, ids.img_break, ids.img_end), image=self.pixels(image)
        )

    def _grid(self, width: int, height: int) -> Any:
        config = self.image_config
        return image_grid(
            width,
            height,
            patch_size=config.image_patch_size,
            longest_edge=config.max_image_size,
            rounding="mistral",
            spatial_merge_size=config.spatial_merge_size,
        )

    def pixels(self, image: Image) -> np.ndarray[Any, Any]:
        """The image resized to its grid and normalised, (3, H, W) float32."""
        if self._processor is None:
            self._processor = native_processor(self.image_config)
        pixels: np.ndarray[Any, Any] = self._processor.image(image)
        return pixels


def native_processor(image_config: ImageConfig, **options: Any) -> Any:
    """The NativeImageProcessor with the sizes that a tokenizer's file asks for; `options` take precedence."""
    from pixtral.images.processors import NativeImageProcessor

    side = image_config.image_patch_size * image_config.spatial_merge_size
    sizes = {"size": {"longest_edge": image_config.max_image_size}, "patch_size": {"height": side, "width": side}}
    return NativeImageProcessor(**{**sizes, **options})


def image_entries(images: Sequence[np.ndarray[Any, Any]], tensor_type: str | None) -> dict[str, Any]:
    """pixel_values and image_sizes of a call's images.

    Args:
        images: each (3, H, W).
        tensor_type: "pt" or "np" for (N, 3, max H, max W), zero-padded below and to the right; None for a list.
    """
    if not images:
        return {}
    sizes = [[int(image.shape[1]), int(image.shape[2])] for image in images]
    if tensor_type is None:
        return {"pixel_values": list(images), "image_sizes": sizes}
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    padded = np.zeros((len(images), images[0].shape[0], height, width), dtype=images[0].dtype)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    if tensor_type == "np":
        return {"pixel_values": padded, "image_sizes": np.array(sizes, dtype=np.int64)}
    if tensor_type != "pt":
        raise PromptError(f"return_tensors is {tensor_type!r}; expected 'pt', 'np' or None")
    import torch

    return {"pixel_values": torch.from_numpy(padded), "image_sizes": torch.tensor(sizes, dtype=torch.long)}
