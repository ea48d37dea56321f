"""Seconds from a JPEG file of 4000 x 3000 pixels to pixel values.

    python benchmarks/bench_preprocessing.py [--runs 7] [--compare transformers]

Decodes, converts, resizes to at most 1024 pixels and normalises, with PixtralImageProcessorFast and
PixtralImageProcessor; with --compare in turn with Transformers' processor on torchvision (which the environment must
then have), and says whether the pixel values are equal. Prints medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from pixtral.images.processors import PixtralImageProcessor, PixtralImageProcessorFast


def photograph(width: int, height: int) -> bytes:
    """A JPEG with the detail of a photograph: noise at several scales."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, 3), np.float32)
    for scale in (4, 16, 64, 256):
        small = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    buffer = io.BytesIO()
    Image.fromarray((total / 4).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def transformers_fast() -> Callable[[str], torch.Tensor]:
    """Transformers' way from a path to pixel values, on torchvision."""
    from transformers import PixtralImageProcessor as Theirs
    from transformers.image_utils import load_image

    processor = Theirs()
    return lambda path: processor(load_image(path), return_tensors="pt")["pixel_values"]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compare", choices=["transformers"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fast, slow = PixtralImageProcessorFast(), PixtralImageProcessor()
    systems: dict[str, Callable[[str], torch.Tensor]] = {
        "PixtralImageProcessorFast": lambda path: fast(path, return_tensors="pt")["pixel_values"],
        "PixtralImageProcessor": lambda path: slow(path, return_tensors="pt")["pixel_values"],
    }
    if args.compare:
        systems["transformers, torchvision"] = transformers_fast()
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder, "photograph.jpg"))
        pathlib.Path(path).write_bytes(photograph(4000, 3000))
        times: dict[str, list[float]] = {name: [] for name in systems}
        pixels = {}
        for _ in range(args.runs + 1):
            for name, run in systems.items():
                start = time.perf_counter()
                pixels[name] = run(path)
                times[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(values[1:]), 3) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:28} {seconds:.3f} s")
    result: dict[str, object] = {"benchmark": "preprocessing", "jpeg": "4000x3000", "seconds": medians}
    if args.compare:
        ours, theirs = medians["PixtralImageProcessorFast"], medians["transformers, torchvision"]
        result["speedup"] = round(theirs / ours, 2)
        equal = torch.equal(pixels["PixtralImageProcessorFast"], pixels["transformers, torchvision"])
        result["equal_pixels"] = equal
        print(f"{result['speedup']} x as fast as transformers; pixel values equal: {equal}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
