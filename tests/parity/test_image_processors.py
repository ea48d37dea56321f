"""Our three image processors beside the recordings of transformers' two and of mistral-common's (record_images.py).

Equal means: every value of the whole batch, dtype included. mistral-common resizes with OpenCV, whose float32 sums
run in another order, so there the bound is 1e-3 on the scale 0..255.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixtral.images.geometry import Grid, image_grid, resized_size
from pixtral.images.processors import NativeImageProcessor, PixtralImageProcessor, PixtralImageProcessorFast

RECORDER = runpy.run_path(str(Path(__file__).with_name("record_images.py")))
GOLDEN: Path = RECORDER["GOLDEN"]
IMAGES: dict[str, Image.Image] = RECORDER["make_images"]()
VARIANTS: dict[str, dict[str, Any]] = RECORDER["VARIANTS"]
BATCH: list[str] = RECORDER["BATCH"]
OURS = {"pil": PixtralImageProcessor, "fast": PixtralImageProcessorFast}

# torch's 8-bit kernel is the recorded one where it is vectorised; elsewhere single values may round the other way
STEPS = {"pil": 0, "fast": 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, np.ndarray]]:
    return {label: dict(np.load(GOLDEN / f"{label}.npz")) for label in ("pil", "fast", "native")}


def assert_same_pixels(label: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if STEPS[label]:
        np.testing.assert_allclose(ours, theirs, atol=STEPS[label] / 255 / 0.26)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("label", OURS)
def test_images(label: str, name: str, recorded: dict[str, dict[str, np.ndarray]]) -> None:
    batch = OURS[label]()(IMAGES[name], return_tensors="np")
    assert_same_pixels(label, batch["pixel_values"], recorded[label][name])
    assert batch["image_sizes"].tolist() == [list(recorded[label][name].shape[2:])]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("label", OURS)
def test_options(label: str, variant: str, recorded: dict[str, dict[str, np.ndarray]]) -> None:
    theirs = recorded[label][f"variant_{variant}"]
    image = IMAGES["rgb_70x50"]
    assert_same_pixels(label, OURS[label]()(image, return_tensors="np", **VARIANTS[variant])["pixel_values"], theirs)
    built = OURS[label](**VARIANTS[variant])
    assert_same_pixels(label, built(image, return_tensors="np")["pixel_values"], theirs)


@pytest.mark.parametrize("label", OURS)
def test_batch_of_different_sizes(label: str, recorded: dict[str, dict[str, np.ndarray]]) -> None:
    batch = OURS[label]()([IMAGES[name] for name in BATCH], return_tensors="np")
    assert_same_pixels(label, batch["pixel_values"], recorded[label]["batch"])
    np.testing.assert_array_equal(batch["image_sizes"], recorded[label]["batch_sizes"])


@pytest.mark.parametrize("name", IMAGES)
def test_native(name: str, recorded: dict[str, dict[str, np.ndarray]]) -> None:
    ours, theirs = NativeImageProcessor().image(IMAGES[name]), recorded["native"][name]
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    assert np.abs((ours - theirs) * std * 255).max() <= 1e-3


def test_native_differs_from_the_others_when_it_shrinks(recorded: dict[str, dict[str, np.ndarray]]) -> None:
    """So the recordings can tell the resamplers apart."""
    native, pil = recorded["native"]["blocks_2000x700"], recorded["pil"]["blocks_2000x700"][0]
    assert native.shape == pil.shape
    assert np.abs(native - pil).max() > 0.1


def test_geometry() -> None:
    table = json.loads((GOLDEN / "geometry.json").read_text())
    assert len(table["sizes"]) > 300
    for width, height, hf_rows, hf_cols, rows, cols in table["sizes"]:
        assert image_grid(width, height, rounding="hf") == Grid(hf_rows, hf_cols), (width, height)
        assert image_grid(width, height, rounding="mistral") == Grid(rows, cols), (width, height)
        assert resized_size(width, height, rounding="hf") == (hf_rows * 16, hf_cols * 16)
    differing = [row[:2] for row in table["sizes"] if row[2:4] != row[4:6]]
    assert [1030, 1080] in differing


def test_native_token_counts() -> None:
    tokens = json.loads((GOLDEN / "geometry.json").read_text())["native_tokens"]
    for name, count in tokens.items():
        assert NativeImageProcessor().grid_of(*IMAGES[name].size).num_tokens == count


def test_pil_processor_beside_the_installed_transformers() -> None:
    """The recording of the PIL class, checked live: it is the one that needs no torchvision."""
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    images = [IMAGES[name] for name in ("rgb_70x50", "rgba_40x30", "blocks_1030x1080")]
    theirs = module.PixtralImageProcessorPil()(images, return_tensors="pt")
    ours = PixtralImageProcessor()(images, return_tensors="pt")
    assert torch.equal(ours.pixel_values, theirs.pixel_values)
    assert torch.equal(ours.image_sizes, theirs.image_sizes)
    assert ours.image_sizes.dtype == theirs.image_sizes.dtype


def test_types_without_return_tensors_beside_the_installed_transformers() -> None:
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    images = [IMAGES["rgb_70x50"], IMAGES["rgb_16x16"]]
    for options in ({}, {"do_pad": False}):
        theirs, ours = (
            module.PixtralImageProcessorPil()(images, **options),
            PixtralImageProcessor()(images, **options),
        )
        assert type(ours["pixel_values"]) is type(theirs["pixel_values"])
        assert ours["image_sizes"] == theirs["image_sizes"]
