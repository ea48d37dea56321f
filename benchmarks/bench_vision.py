"""Seconds and memory of the vision tower at Pixtral-12B's real shapes (random weights, bfloat16).

    python benchmarks/bench_vision.py [--images 1 4] [--side 512] [--runs 5] [--compare transformers] [--memory]

Times one pass of the tower over `--images` images of side x side pixels, alternating with Transformers' tower on the
same weights in the same process when it is to be compared, and prints medians. With --memory, a process of its own for
1, 2, 4 and 8 images measures how far the peak memory rises above the loaded model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch

from pixtral.bench.ceilings import seconds_of
from pixtral.bench.machine import resident
from pixtral.configuration import PixtralVisionConfig
from pixtral.models.vision import PixtralVisionModel

SHAPES = {"hidden_act": "silu"}  # the defaults of the configuration are Pixtral-12B's
MEMORY_COUNTS = (1, 2, 4, 8)


def build() -> PixtralVisionModel:
    """The tower with random weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = PixtralVisionModel(PixtralVisionConfig(**SHAPES)).eval()
    torch.set_default_dtype(torch.float32)
    return model


def build_transformers(ours: PixtralVisionModel) -> torch.nn.Module:
    """Transformers' tower on the same tensors."""
    import transformers

    with torch.device("meta"):
        theirs = transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**SHAPES))
    theirs = theirs.to(torch.bfloat16).to_empty(device="cpu").eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    rotary = theirs.patch_positional_embedding
    rotary.inv_freq = rotary.__class__(theirs.config).inv_freq  # a buffer that is not in the checkpoint
    return theirs


def measure_time(counts: list[int], side: int, runs: int, compare: bool) -> list[dict[str, float]]:
    """Medians for each number of images, the systems taking turns."""
    ours = build()
    theirs = build_transformers(ours) if compare else None
    rows = []
    for count in counts:
        pixels = torch.randn(count, 3, side, side).bfloat16()
        systems: dict[str, Callable[[], object]] = {"pixtral": lambda p=pixels: ours.encode(list(p))}
        if theirs is not None:
            systems["transformers"] = lambda p=pixels: theirs(p)
        times: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(runs + 1):
            for name, run in systems.items():
                times[name].append(seconds_of(run))
        row: dict[str, float] = {"images": count, "side": side}
        row |= {f"{name}_s": round(statistics.median(values[1:]), 3) for name, values in times.items()}
        if theirs is not None:
            row["speedup"] = round(row["transformers_s"] / row["pixtral_s"], 2)
            a, b = ours.encode(list(pixels)).float(), theirs(pixels).last_hidden_state[0].float()
            row["relative_difference"] = round(float((a - b).norm() / b.norm()), 4)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def peak_rise(count: int, side: int) -> float:
    """MiB by which the peak rises above the loaded model while `count` images are encoded; for a fresh process."""
    model = build()
    model.encode([torch.zeros(3, 64, 64).bfloat16()])
    before = resident()
    assert before is not None, "memory is measured on Linux only"
    model.encode([torch.randn(3, side, side).bfloat16() for _ in range(count)])
    after = resident()
    assert after is not None
    return (after.peak - before.now) / 2**20


def measure_memory(side: int) -> dict[str, object]:
    """Peaks for several numbers of images and their largest distance from a straight line."""
    peaks = []
    for count in MEMORY_COUNTS:
        command = [sys.executable, __file__, "--peak", str(count), "--side", str(side)]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    slope, intercept = statistics.linear_regression(MEMORY_COUNTS, peaks)
    off = max(abs(p - (slope * n + intercept)) / p for n, p in zip(MEMORY_COUNTS, peaks, strict=True))
    row = {
        "peak_mib": dict(zip(map(str, MEMORY_COUNTS), [round(p, 1) for p in peaks], strict=True)),
        "mib_per_image": round(slope, 1),
        "off_line": round(off, 3),
    }
    print(f"peak above the model: {row['peak_mib']} MiB; line off by at most {off:.1%}", flush=True)
    return row


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compare", choices=["transformers"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.peak:
            print(peak_rise(args.peak, args.side))
            return
        result: dict[str, object] = {"benchmark": "vision", "threads": args.threads, "torch": torch.__version__}
        result["time"] = measure_time(args.images, args.side, args.runs, args.compare is not None)
        if args.memory:
            result["memory"] = measure_memory(args.side)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
