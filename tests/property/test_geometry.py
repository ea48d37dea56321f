"""The grid: what holds for every size and setting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from profiles import examples

from pixtral.images.geometry import Grid, Rounding, expand, image_grid, resized_size
from pixtral.images.processors import NativeImageProcessor, PixtralImageProcessor, PixtralImageProcessorFast

SIDES = st.integers(1, 20_000)
ROUNDINGS = st.sampled_from(["hf", "mistral"])
PATCHES = st.integers(1, 40)
EDGES = st.integers(16, 2048)


@examples(300)
@given(SIDES, SIDES, PATCHES, EDGES, ROUNDINGS)
def test_bounds(width: int, height: int, patch: int, edge: int, rounding: Rounding) -> None:
    grid = image_grid(width, height, patch_size=patch, longest_edge=edge, rounding=rounding)
    assert grid.rows >= 1 and grid.cols >= 1
    rows, cols = grid.size(patch)
    # never scaled up: a side grows by less than one patch, and never passes the longest edge by more than that
    assert rows < min(height, edge) + patch
    assert cols < min(width, edge) + patch
    if max(width, height) <= edge:
        assert (rows, cols) == (-(-height // patch) * patch, -(-width // patch) * patch)
    else:
        assert max(grid.rows, grid.cols) >= (edge - 1) // patch  # never scaled down further than needed


@examples(300)
@given(SIDES, SIDES, st.integers(1, 4), ROUNDINGS)
def test_one_function_counts_expands_and_sizes(width: int, height: int, merge: int, rounding: Rounding) -> None:
    grid = image_grid(width, height, spatial_merge_size=merge, rounding=rounding)
    ids = expand(grid, 10, 12, 13)
    assert len(ids) == grid.num_tokens == grid.rows * (grid.cols + 1)
    assert ids.count(10) == grid.num_patches == grid.rows * grid.cols
    assert ids.count(12) == grid.rows - 1
    assert ids.index(13) == len(ids) - 1
    assert ids[grid.cols :: grid.cols + 1] == [12] * (grid.rows - 1) + [13]
    assert resized_size(width, height, spatial_merge_size=merge, rounding=rounding) == grid.size(16 * merge)


@examples(300)
@given(SIDES, SIDES, ROUNDINGS)
def test_transposing_the_image_transposes_the_grid(width: int, height: int, rounding: Rounding) -> None:
    grid, turned = image_grid(width, height, rounding=rounding), image_grid(height, width, rounding=rounding)
    assert (grid.rows, grid.cols) == (turned.cols, turned.rows)


@examples(25)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([1, 7, 16]), st.integers(16, 100))
@pytest.mark.parametrize("kind", [PixtralImageProcessor, PixtralImageProcessorFast, NativeImageProcessor])
def test_pixels_fill_the_grid(kind: type, width: int, height: int, patch: int, edge: int) -> None:
    processor = kind(size={"longest_edge": edge}, patch_size=patch)
    image = Image.fromarray(np.full((height, width, 3), 7, np.uint8))
    batch = processor(image, return_tensors="np")
    assert tuple(batch["image_sizes"][0]) == processor.grid_of(width, height).size(patch)
    assert batch["pixel_values"].shape == (1, 3, *batch["image_sizes"][0])


@examples(10)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5), st.booleans())
@pytest.mark.parametrize("kind", [PixtralImageProcessor, PixtralImageProcessorFast, NativeImageProcessor])
def test_a_batch_is_its_images_one_at_a_time(kind: type, sizes: list[tuple[int, int]], apart: bool) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
    images.append(images[0].transpose(Image.Transpose.ROTATE_180))  # at least two of one size
    processor = kind(size={"longest_edge": 64}, disable_grouping=apart)
    batch = processor(images, return_tensors="np")
    for pixels, size, image in zip(batch["pixel_values"], batch["image_sizes"], images, strict=True):
        alone = processor(image, return_tensors="np")
        assert tuple(size) == tuple(alone["image_sizes"][0])
        height, width = size
        np.testing.assert_array_equal(pixels[:, :height, :width], alone["pixel_values"][0])
        assert not pixels[:, height:].any() and not pixels[:, :, width:].any()


def test_differing_roundings() -> None:
    assert image_grid(1030, 1080, rounding="hf") == Grid(64, 61)
    assert image_grid(1030, 1080, rounding="mistral") == Grid(64, 62)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (10_000, 2), (2, 10_000), (3000, 1)])
@pytest.mark.parametrize("rounding", ["hf", "mistral"])
def test_extreme_shapes(width: int, height: int, rounding: Rounding) -> None:
    grid = image_grid(width, height, rounding=rounding)
    assert grid == Grid(64 if height > 16 else 1, 64 if width > 16 else 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0, "height": 5}, "0x5"),
        ({"width": 5, "height": 5, "patch_size": 0}, "patch_size is 0"),
        ({"width": 5, "height": 5, "longest_edge": (0, 4)}, "longest_edge is"),
        ({"width": 5, "height": 5, "spatial_merge_size": 0}, "spatial_merge_size is 0"),
        ({"width": 5, "height": 5, "rounding": "up"}, "'hf' or 'mistral'"),
    ],
)
def test_refusals(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(**arguments)
