"""How many tokens images take, known before any is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixtral.images.base import BaseImageProcessor
from pixtral.images.geometry import Grid


@dataclass(frozen=True)
class ModalData:
    """How many tokens and patches images take; entries are found by name or attribute."""

    num_image_tokens: list[int]
    num_image_patches: list[int]

    def __getitem__(self, key: str) -> list[int]:
        value: list[int] = getattr(self, key)
        return value


class ImageCounts:
    """Mixed into PixtralProcessor."""

    image_processor: BaseImageProcessor
    patch_size: int
    spatial_merge_size: int

    def num_image_tokens(self, width: int, height: int, **options: Any) -> int:
        """How many tokens of the prompt an image of width x height pixels takes."""
        return self._grid(width, height, options).num_tokens

    def _grid(self, width: int, height: int, options: Mapping[str, Any]) -> Grid:
        side = self.patch_size * self.spatial_merge_size
        return self.image_processor.grid_of(width, height, **{**options, "patch_size": {"height": side, "width": side}})

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> ModalData:
        """Tokens of images of these (height, width) sizes, without opening any."""
        sizes = [] if image_sizes is None else list(image_sizes)
        tokens = [self.num_image_tokens(int(width), int(height), **kwargs) for height, width in sizes]
        return ModalData(tokens, [1] * len(tokens))
