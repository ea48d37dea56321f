"""A prompt as the engine reads it: ids with images expanded, and the pixels of each image by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pixtral.engine.input_processor import image_key
from pixtral.engine.request import ImageInput
from pixtral.images.geometry import Grid
from pixtral.processing.expansion import ExpandedPrompt


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt for an `EngineRequest`.

    Attributes:
        ids: the prompt, every image expanded to its rows of tokens.
        images: position, key and normalised (3, H, W) pixels of each image, in order.
        grids: rows and columns of tokens of each image.
    """

    ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()
    grids: tuple[Grid, ...] = ()

    @property
    def num_image_tokens(self) -> int:
        """Prompt tokens that images take, breaks and ends included."""
        return sum(grid.num_tokens for grid in self.grids)


def encoded_prompt(prompt: ExpandedPrompt, grids: Sequence[Grid], pixels: Sequence[Any]) -> EncodedPrompt:
    """Put expanded ids and pixels, (3, H, W) arrays or tensors, together."""
    images = []
    for (start, end), grid, values in zip(prompt.spans, grids, pixels, strict=True):
        tensor = torch.as_tensor(values)
        images.append(
            ImageInput(start, end - start, grid.num_patches, image_key(tensor), lambda tensor=tensor: tensor)  # type: ignore[misc]
        )
    return EncodedPrompt(tuple(prompt.ids), tuple(images), tuple(grids))
