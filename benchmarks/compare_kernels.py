"""Two or more builds of the kernels beside each other: the same call by each in turn, so that all see the same minutes.

    make native && cp .venv/lib/python3*/site-packages/pixtral/ops/native/_kernels.abi3.so before.so
    ... change something, `make native`, copy it again ...
    python benchmarks/compare_kernels.py before.so after.so [--cases token prompt] [--rounds 15] [--threads 2]

For each case and build: the least and the median time, and the median of the rounds' ratios to the first build. What a
single row reads is another memory at each call, and more than the caches hold. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_linear import random_weight
from torch import Tensor
from torch.nn.functional import linear as linear_of

from pixtral.ops import attention_native, dense, linear_native, rowwise
from pixtral.ops.attention import attention
from pixtral.ops.kv_cache import LayerCache, Packing
from pixtral.ops.linear import gated_linear, linear
from pixtral.ops.native import library
from pixtral.ops.runtime import use_threads

Run = Callable[[], Tensor]


def products(bits: int, rows: int, width: int, outputs: int, *, gated: bool = False, group: int = 64) -> Run:
    """Layers on few bits; a single row meets another weight at each call."""
    x = torch.randn(rows, width).bfloat16()
    copies = 6 if rows == 1 else 1
    turns = itertools.cycle(
        [[random_weight(bits, outputs, width, group) for _ in range(1 + gated)] for _ in range(copies)]
    )
    return lambda: gated_linear(x, *next(turns)) if gated else linear(x, next(turns))[0]


def dense_products(rows: int, width: int, outputs: int) -> Run:
    """A layer in bfloat16; PyTorch's where a build has none."""
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(outputs, width).bfloat16()
    return lambda: dense.dense_linear(x, [weight], [None])[0] if dense.runs_dense(x, weight) else linear_of(x, weight)


def new_token(context: int, stored: torch.dtype) -> Run:
    """Attention of one row over a cache; another cache at each call."""
    q, k, v = (torch.randn(1, heads, 128).bfloat16() for heads in (32, 8, 8))
    caches = [LayerCache.empty(context, 8, 128, stored, "cpu") for _ in range(max(2, 40_000 // context))]
    for cache in caches:
        cache.write(torch.arange(context), *(torch.randn(context, 8, 128).bfloat16() for _ in range(2)))
    turns = itertools.cycle(caches)
    packing = Packing((1,), (context,), True, torch.tensor([context - 1]), (slice(0, context),))
    return lambda: attention(q, k, v, packing, next(turns))


def whole(rows: int, heads: int, key_heads: int, dim: int, causal: bool) -> Run:
    """Attention of a prompt or an image to itself."""
    q, k, v = (torch.randn(rows, count, dim).bfloat16() for count in (heads, key_heads, key_heads))
    return lambda: attention(q, k, v, Packing.full([rows], causal=causal))


CASES: dict[str, Callable[[], Run]] = {
    "one row, gate and up, 4 bits": lambda: products(4, 1, 5120, 14336, gated=True),
    "one row, down, 4 bits": lambda: products(4, 1, 14336, 5120),
    "prompt, gate and up, 4 bits": lambda: products(4, 1056, 5120, 14336, gated=True),
    "image, gate and up, 8 bits": lambda: products(8, 1024, 1024, 4096, gated=True, group=128),
    "image, q, bfloat16": lambda: dense_products(1024, 1024, 1024),
    "image, down, bfloat16": lambda: dense_products(1024, 4096, 1024),
    "token after 1,024, bfloat16": lambda: new_token(1024, torch.bfloat16),
    "token after 16,384, bfloat16": lambda: new_token(16384, torch.bfloat16),
    "token after 16,384, 8 bits": lambda: new_token(16384, torch.int8),
    "prompt, attention": lambda: whole(1056, 32, 8, 128, True),
    "image, attention": lambda: whole(1024, 16, 16, 64, False),
}


def use(build: library.Kernels) -> None:
    """Let all operations call this build from now on."""
    library._open = lambda: build  # type: ignore[assignment]
    library.kernels.cache_clear()
    for functions in (dense._functions, linear_native._function, attention_native._functions, rowwise._functions):
        functions.cache_clear()


def compare(builds: dict[str, library.Kernels], run: Run, rounds: int) -> list[dict[str, Any]]:
    """One row for each build."""
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    for turn in range(rounds + 1):
        for name, build in builds.items():
            use(build)
            start = time.perf_counter()
            run()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(builds))
    return [
        {
            "build": name,
            "least_ms": round(1e3 * min(times), 3),
            "median_ms": round(1e3 * statistics.median(times), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(times, seconds[first], strict=True)), 3),
        }
        for name, times in seconds.items()
    ]


@torch.no_grad()
def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", help="files of the library")
    parser.add_argument("--cases", nargs="+", default=[""], help="words of the cases to run; all when left out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    builds = {path: library.Kernels(path) for path in args.builds}
    found = []
    use_threads(args.threads)
    for case, make in CASES.items():
        if not any(word in case for word in args.cases):
            continue
        rows = compare(builds, make(), args.rounds)
        for row in rows:
            times = f"{row['least_ms']:10.3f} ms at least{row['median_ms']:10.3f} median{row['ratio']:8.3f} x"
            print(f"{case:30}{row['build'][-24:]:26}{times}", flush=True)
        found.append({"case": case, "rows": rows})
    print(json.dumps({"benchmark": "compare_kernels", "cases": found}))


if __name__ == "__main__":
    main()
