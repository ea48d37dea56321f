"""The quantized linear layers at Pixtral-12B's shapes, beside what this machine can do at most.

    python benchmarks/bench_linear.py [--shapes gate_up down] [--rows 1 16 1056] [--threads 2] [--seconds 1]

For each shape and number of rows: milliseconds, GB/s of weights, TOP/s, and the share of the reading speed and of the
8-bit peak that was measured immediately before and after each call, since both vary on a shared machine; medians. Time
is that of the public call: quantizing the activations, the product, the result in bfloat16. Weights lie in huge pages,
as loaded models' do, and are more than the caches hold. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from pixtral.bench.ceilings import Meter, seconds_of
from pixtral.ops.linear import gated_linear, linear
from pixtral.ops.native.library import kernels
from pixtral.ops.quantized_weight import QuantizedWeight, quantized_shapes
from pixtral.ops.runtime import empty_huge, use_threads

# bits, output features of each weight, input features, and whether the first two are gate and up
SHAPES: dict[str, tuple[int, tuple[int, ...], int, bool]] = {
    "qkv": (4, (4096, 1024, 1024), 5120, False),
    "o": (4, (5120,), 4096, False),
    "up": (4, (14336,), 5120, False),
    "gate_up": (4, (14336, 14336), 5120, True),
    "down": (4, (5120,), 14336, False),
    "lm_head": (8, (131072,), 5120, False),
    "tower_qkv": (8, (1024, 1024, 1024), 1024, False),
    "tower_gate_up": (8, (4096, 4096), 1024, True),
    "tower_down": (8, (1024,), 4096, False),
    "projector_1": (8, (5120,), 1024, False),
    "projector_2": (8, (5120,), 5120, False),
}
ROWS = (1, 2, 4, 8, 16, 64, 256, 1024, 1056)
GROUP = 64
BYTES = 200 << 20  # of weights that a shape takes turns with
MOST_ROWS_OF_HEAD = 64  # only rows that are sampled, or verified, get there


class Limits:
    """Reading and 8-bit products of this machine, now."""

    def __init__(self, threads: int) -> None:
        self._meter = Meter(threads)
        self._threads = threads
        library = kernels()
        if library is None:
            raise SystemExit("the kernels are not built; `make native` builds them")
        self._int8 = library.function("px_measure_int8", [ctypes.c_int, ctypes.c_int64], ctypes.c_double)

    def now(self) -> tuple[float, float]:
        """Bytes and operations per second."""
        return self._meter.read(), self._int8(self._threads, 300_000)

    def typical(self) -> dict[str, float]:
        """Medians, in GB/s and TOP/s."""
        reads, peaks = zip(*(self.now() for _ in range(9)), strict=True)
        return {
            "read_gb_s": round(statistics.median(reads) / 1e9, 1),
            "int8_top_s": round(statistics.median(peaks) / 1e12, 3),
        }


def random_weight(bits: int, rows: int, width: int, group: int = GROUP) -> QuantizedWeight:
    """Random codes and scales."""
    shapes = quantized_shapes(bits, group, rows, width)
    parts = {name: empty_huge(shape, dtype) for name, (dtype, shape) in shapes.items()}
    parts["codes"].random_(0 if bits == 4 else 1, 256)
    parts["scales"].random_(30, 127)
    parts["row_scales"].fill_(1e-4)
    return QuantizedWeight(bits, group, rows, width, **parts)


def measure(shape: str, all_rows: list[int], limits: Limits, budget: float) -> list[dict[str, Any]]:
    """A line of the table for each number of rows."""
    bits, features, width, gated = SHAPES[shape]
    size = sum(features) * width * bits // 8
    copies = [[random_weight(bits, n, width) for n in features] for _ in range(max(1, min(32, -(-BYTES // size))))]
    operations, nbytes = 2 * sum(features) * width, sum(weight.nbytes() for weight in copies[0])
    lines = []
    for rows in all_rows:
        x = torch.randn(rows, width, dtype=torch.bfloat16)
        times, of_read, of_peak, turn = [], [], [], 0
        end = time.perf_counter() + budget
        while len(times) < 5 or time.perf_counter() < end:
            weights = copies[turn % len(copies)]
            turn += 1
            before = limits.now()
            took = seconds_of(functools.partial(_call, x, weights, gated))
            read, peak = (statistics.mean(pair) for pair in zip(before, limits.now(), strict=True))
            times.append(took)
            of_read.append(nbytes / took / read)
            of_peak.append(operations * rows / took / peak)
        took = statistics.median(times)
        lines.append(
            {
                "shape": shape,
                "rows": rows,
                "ms": round(1000 * took, 3),
                "gb_s": round(nbytes / took / 1e9, 1),
                "of_read": round(statistics.median(of_read), 3),
                "top_s": round(operations * rows / took / 1e12, 3),
                "of_int8": round(statistics.median(of_peak), 3),
            }
        )
        print(
            "{shape:14} {rows:5} {ms:10.3f} {gb_s:7.1f} {of_read:8.2f} {top_s:7.3f} {of_int8:8.2f}".format(**lines[-1])
        )
    return lines


def _call(x: Tensor, weights: list[QuantizedWeight], gated: bool) -> object:
    return gated_linear(x, *weights) if gated else linear(x, weights)


def overhead(calls: int = 2000) -> dict[str, float]:
    """Microseconds of a call at one row whose product takes next to nothing, all of it around the kernel."""
    x = torch.randn(1, 64, dtype=torch.bfloat16)
    weights = [random_weight(4, 16, 64) for _ in range(3)]

    def run(some: list[QuantizedWeight]) -> None:
        for _ in range(calls):
            linear(x, some)

    runs = {"one weight": weights[:1], "three weights": weights}
    best = {name: min(seconds_of(functools.partial(run, some)) for _ in range(5)) for name, some in runs.items()}
    return {name: round(1e6 / calls * took, 1) for name, took in best.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    options = parser.parse_args()
    use_threads(options.threads)
    limits = Limits(options.threads)
    ceilings = limits.typical()
    print(f"{options.threads} threads, {ceilings}")
    print("shape           rows         ms    GB/s  of read   TOP/s  of int8")
    lines = []
    with torch.inference_mode():
        for shape in options.shapes:
            least, most = (1, MOST_ROWS_OF_HEAD) if shape == "lm_head" else (1, max(options.rows))
            if shape.startswith(("tower", "projector")):
                least = 64  # an image has at least as many patches
            rows = [n for n in options.rows if least <= n <= most]
            lines += measure(shape, rows, limits, options.seconds)
        around = overhead()
    print(f"microseconds around the kernel: {around}")
    print(json.dumps({"threads": options.threads, "ceilings": ceilings, "overhead_us": around, "lines": lines}))


if __name__ == "__main__":
    main()
