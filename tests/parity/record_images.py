"""Record what transformers and mistral-common make of a set of images, for test_image_processors.py.

The recordings are in golden/images/ and the tests need nothing but them. To make them anew (torchvision and OpenCV do
not sit well beside the CPU build of torch, hence an environment of its own):

    python -m venv record && record/bin/pip install torch==2.14.1 torchvision==0.29.1 transformers==5.23.0 \\
        "mistral-common[opencv]==1.13.1"
    record/bin/python tests/parity/record_images.py
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden" / "images"


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(height, width, channels) uint8, every value as likely as any other."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def blocks(width: int, height: int, seed: int) -> Image.Image:
    """Flat rectangles with hard edges and one patch of noise: a large image whose recording is small."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = rng.integers(0, 256, 3)
    for _ in range(5):
        top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
        pixels[top : top + int(rng.integers(20, height)), left : left + int(rng.integers(20, width))] = rng.integers(
            0, 256, 3
        )
    pixels[100:132, 200:232] = noise(32, 32, seed=seed)
    return Image.fromarray(pixels)


def palette_with_transparency() -> Image.Image:
    image = Image.fromarray(noise(40, 30, 1, seed=9)[..., 0] % 8)  # 8 colours
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(noise(8, 1, 3, seed=10).tobytes())
    image.info["transparency"] = 3
    return image


def make_images() -> dict[str, Image.Image]:
    """PIL images by name; the same ones in every environment."""
    return {
        "rgb_70x50": Image.fromarray(noise(70, 50)),
        "rgb_1x1": Image.fromarray(noise(1, 1)),
        "rgb_16x16": Image.fromarray(noise(16, 16)),
        "rgb_17x16": Image.fromarray(noise(17, 16)),
        "rgb_5x90": Image.fromarray(noise(5, 90)),
        "grey_40x30": Image.fromarray(noise(40, 30, 1, seed=1)[..., 0]),
        "rgba_40x30": Image.fromarray(noise(40, 30, 4, seed=2)),
        "la_40x30": Image.merge("LA", [Image.fromarray(noise(40, 30, 1, seed=s)[..., 0]) for s in (3, 4)]),
        "palette_40x30": palette_with_transparency(),
        "bits_40x30": Image.fromarray(noise(40, 30, 1, seed=5)[..., 0] > 127),
        "cmyk_40x30": Image.merge("CMYK", [Image.fromarray(noise(40, 30, 1, seed=s)[..., 0]) for s in (5, 6, 7, 8)]),
        "jpeg_60x44": Image.open(io.BytesIO((GOLDEN / "small.jpg").read_bytes())),
        "blocks_1030x1080": blocks(1030, 1080, 11),
        "blocks_2000x700": blocks(2000, 700, 12),
        "blocks_3078x1060": blocks(3078, 1060, 13),
    }


# keyword arguments, tried on the first image
VARIANTS: dict[str, dict[str, Any]] = {
    "no_rescale": {"do_rescale": False},
    "no_normalize": {"do_normalize": False},
    "raw": {"do_rescale": False, "do_normalize": False},
    "no_resize": {"do_resize": False},
    "patch_14": {"patch_size": 14},
    "patch_14x28": {"patch_size": {"height": 14, "width": 28}},
    "edge_64": {"size": {"longest_edge": 64}},
    "edge_33_patch_8": {"size": {"longest_edge": 33}, "patch_size": 8},
    "size_64": {"size": 64},
    "box_32x64": {"size": {"height": 32, "width": 64}},
    "bilinear": {"resample": 2},
    "nearest": {"resample": 0},
    "half": {"image_mean": 0.5, "image_std": 0.5},
    "factor": {"rescale_factor": 1 / 127.5},
}
BATCH = ["rgb_70x50", "rgb_1x1", "rgb_5x90", "grey_40x30"]


def sizes() -> list[tuple[int, int]]:
    """(width, height), none so long that transformers rounds a side to nothing."""
    rng = np.random.default_rng(21)
    drawn = np.exp(rng.uniform(np.log(40), np.log(12000), (400, 2))).astype(int).tolist()
    named = [(1, 1), (16, 16), (17, 16), (1024, 1024), (1025, 1024), (1030, 1080), (1080, 1030), (3078, 1060)]
    common = [(1920, 1080), (4032, 3024), (2480, 3508), (12000, 9000)]
    return [*named, *common, *((w, h) for w, h in drawn if max(w, h) / min(w, h) < 500)]


def main() -> None:
    from mistral_common.protocol.instruct.chunk import ImageChunk
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
    from transformers.models.pixtral import image_processing_pil_pixtral as pil
    from transformers.models.pixtral import image_processing_pixtral as fast

    GOLDEN.mkdir(parents=True, exist_ok=True)
    if not (GOLDEN / "small.jpg").exists():
        smooth = Image.fromarray(noise(6, 5, seed=30)).resize((60, 44), Image.Resampling.BICUBIC)
        smooth.save(GOLDEN / "small.jpg", quality=85)
    native = ImageEncoder(ImageConfig(16, 1024), SpecialImageIDs(img=10, img_break=12, img_end=13))
    images = make_images()
    first = next(iter(images.values()))
    for label, processor in (("pil", pil.PixtralImageProcessorPil()), ("fast", fast.PixtralImageProcessor())):
        arrays = {name: processor(image, return_tensors="np")["pixel_values"] for name, image in images.items()}
        for name, options in VARIANTS.items():
            arrays[f"variant_{name}"] = processor(first, return_tensors="np", **options)["pixel_values"]
        batch = processor([images[name] for name in BATCH], return_tensors="np")
        arrays |= {"batch": batch["pixel_values"], "batch_sizes": batch["image_sizes"]}
        np.savez_compressed(GOLDEN / f"{label}.npz", **arrays)
    encoded = {name: native(ImageChunk(image=image)) for name, image in images.items()}
    np.savez_compressed(GOLDEN / "native.npz", **{name: item.image for name, item in encoded.items()})
    rows = []
    for width, height in sizes():
        shape = np.broadcast_to(np.uint8(0), (3, height, width))
        out = fast.get_resize_output_image_size(shape, (1024, 1024), (16, 16), "channels_first")
        cols, lines = native._image_to_num_tokens(SimpleNamespace(size=(width, height)))
        rows.append([width, height, out[0] // 16, out[1] // 16, lines, cols])
    tokens = {name: len(item.tokens) for name, item in encoded.items()}
    text = json.dumps({"columns": "width height hf_rows hf_cols mistral_rows mistral_cols", "sizes": rows})
    text = text.replace("], [", "],\n[")
    (GOLDEN / "geometry.json").write_text(text[:-1] + f',\n"native_tokens": {json.dumps(tokens)}}}\n')
    for path in sorted(GOLDEN.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
