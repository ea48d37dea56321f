"""The patch grid of an image: the size to which it is resized, and the number of its tokens.

Sizes are (height, width) in pixels unless a name says otherwise. A grid of rows x cols patches is written into the
prompt as rows of cols image tokens, each row followed by a break token, the last break replaced by an end token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Rounding = Literal["hf", "mistral"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of patches; after spatial merging, of merged patches."""

    rows: int
    cols: int

    @property
    def num_patches(self) -> int:
        """Image features, and image tokens, that the grid stands for."""
        return self.rows * self.cols

    @property
    def num_tokens(self) -> int:
        """Prompt tokens including one break per row, the last of which is the end token.

        >>> Grid(64, 64).num_tokens
        4160
        """
        return self.rows * (self.cols + 1)

    def size(self, patch: int | tuple[int, int] = 16) -> tuple[int, int]:
        """(height, width) in pixels of the resized image, for a patch side in pixels or a (height, width) pair."""
        patch_height, patch_width = pair(patch, "patch")
        return self.rows * patch_height, self.cols * patch_width


def pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """(height, width) of a side or a pair; ValueError unless both are positive."""
    height, width = (value, value) if isinstance(value, int) else value
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {value}; expected a positive number of pixels")
    return height, width


def image_grid(
    width: int,
    height: int,
    *,
    patch_size: int | tuple[int, int] = 16,
    longest_edge: int | tuple[int, int] = 1024,
    rounding: Rounding = "hf",
    spatial_merge_size: int = 1,
) -> Grid:
    """The grid of an image of width x height pixels.

    An image larger than `longest_edge` is scaled down to it, keeping its proportions; a smaller one is never scaled
    up. Each side is then extended to the next multiple of the patch. There is always at least one patch each way.

    Args:
        width, height: of the image, in pixels.
        patch_size: side of a patch in pixels, or (height, width).
        longest_edge: the largest side in pixels, or a (height, width) box.
        rounding: how a scaled side becomes whole: "hf" takes the floor as Transformers >= 4.50 does, "mistral"
            rounds half to even as mistral-common does. They differ for about 3 % of the sizes beyond `longest_edge`.
        spatial_merge_size: patches merged into one token along each side; 1 for Pixtral.

    Raises:
        ValueError: for a size below 1, or an unknown rounding.

    >>> image_grid(1030, 1080, rounding="hf"), image_grid(1030, 1080, rounding="mistral")
    (Grid(rows=64, cols=61), Grid(rows=64, cols=62))
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width}x{height} pixels has no patches; expected at least 1x1")
    if spatial_merge_size < 1:
        raise ValueError(f"spatial_merge_size is {spatial_merge_size}; expected at least 1")
    if rounding not in ("hf", "mistral"):
        raise ValueError(f"rounding is {rounding!r}; expected 'hf' or 'mistral'")
    patch_height, patch_width = pair(patch_size, "patch_size")
    max_height, max_width = pair(longest_edge, "longest_edge")
    ratio = max(height / max_height, width / max_width)
    if ratio > 1:
        whole = math.floor if rounding == "hf" else round
        height, width = max(whole(height / ratio), 1), max(whole(width / ratio), 1)
    return Grid(
        rows=(height - 1) // (patch_height * spatial_merge_size) + 1,
        cols=(width - 1) // (patch_width * spatial_merge_size) + 1,
    )


def resized_size(
    width: int,
    height: int,
    *,
    patch_size: int | tuple[int, int] = 16,
    longest_edge: int | tuple[int, int] = 1024,
    rounding: Rounding = "hf",
    spatial_merge_size: int = 1,
) -> tuple[int, int]:
    """(height, width) in pixels of the image as the vision tower sees it; arguments as in `image_grid`."""
    patch_height, patch_width = pair(patch_size, "patch_size")
    merged = patch_height * spatial_merge_size, patch_width * spatial_merge_size
    return image_grid(width, height, patch_size=merged, longest_edge=longest_edge, rounding=rounding).size(merged)


def expand(grid: Grid, image_token_id: int, break_id: int, end_id: int) -> list[int]:
    """The prompt tokens of one image, `grid.num_tokens` of them.

    >>> expand(Grid(2, 3), 10, 12, 13)
    [10, 10, 10, 12, 10, 10, 10, 13]
    """
    ids = ([image_token_id] * grid.cols + [break_id]) * grid.rows
    ids[-1] = end_id
    return ids
