"""Each fast path of the ops floor beside its slow twin in PyTorch, at Pixtral-12B's shapes.

    python benchmarks/bench_twins.py [--only attention] [--runs 7]

One operation at a time, both ways in turns, each after a pause in which the threads of the other have gone to sleep;
medians of milliseconds. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pixtral.bench.machine import describe
from pixtral.ops.attention import attention
from pixtral.ops.dense import dense_gated_linear, dense_linear
from pixtral.ops.kv_cache import KVCache, Packing
from pixtral.ops.linear import gated_linear
from pixtral.ops.linear_reference import dequantized_gated_linear
from pixtral.ops.native.library import kernels
from pixtral.ops.quantized_weight import QuantizedWeight, quantize_reference, quantize_weight
from pixtral.ops.rowwise import add, rms_norm, rotate_pair

ROWS, WIDTH, WIDE, HEADS, KEY_HEADS, DIM = 1056, 5120, 14336, 32, 8, 128  # a prompt in the decoder
PATCHES, TOWER, TOWER_WIDE, TOWER_HEADS = 1024, 1024, 4096, 16  # an image of 512 x 512 in the tower
PAUSE = 0.02  # seconds; PyTorch's threads wait actively for about 5 ms
Run = Callable[[], object]


def drawn(*shape: int) -> Tensor:
    """Normal numbers in bfloat16."""
    return torch.randn(*shape).bfloat16()


def rowwise() -> Iterator[tuple[str, Run, Run]]:
    """Norm, residual sum, rotary embedding."""
    x, y, weight = drawn(ROWS, WIDTH), drawn(ROWS, WIDTH), torch.ones(WIDTH, dtype=torch.bfloat16)
    q, k = drawn(ROWS, HEADS, DIM), drawn(ROWS, KEY_HEADS, DIM)
    cos, sin = drawn(ROWS, 1, DIM // 2), drawn(ROWS, 1, DIM // 2)
    yield (
        f"norm, {ROWS} x {WIDTH}",
        lambda: rms_norm(x, weight, 1e-5),
        lambda: rms_norm(x, weight, 1e-5, native=False),
    )
    yield (f"sum, {ROWS} x {WIDTH}", lambda: add(x, y), lambda: add(x, y, native=False))
    yield (
        f"rotary embedding of a prompt of {ROWS}",
        lambda: rotate_pair(q, k, cos, sin),
        lambda: rotate_pair(q, k, cos, sin, native=False),
    )


def attending() -> Iterator[tuple[str, Run, Run]]:
    """An image, a prompt, one token."""

    def both(packing: Packing, *qkv: Tensor, cache: KVCache | None = None) -> tuple[Run, Run]:
        layer = None if cache is None else cache.layers[0]
        return lambda: attention(*qkv, packing, layer), lambda: attention(*qkv, packing, layer, native=False)

    image = [drawn(PATCHES, TOWER_HEADS, TOWER // TOWER_HEADS) for _ in range(3)]
    yield f"attention, image of {PATCHES} patches", *both(Packing.full([PATCHES], causal=False), *image)
    prompt = drawn(ROWS, HEADS, DIM), drawn(ROWS, KEY_HEADS, DIM), drawn(ROWS, KEY_HEADS, DIM)
    yield f"attention, prompt of {ROWS}", *both(Packing.full([ROWS], causal=True), *prompt)
    token = [x[:1] for x in prompt]
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.int8, "int8")):
        for context in (1100, 16384):
            cache = KVCache(1, KEY_HEADS, DIM, 1, context + 1, dtype, "cpu")
            start = cache.packing([context])
            assert start.slots is not None
            cache.layers[0].write(start.slots, drawn(context, KEY_HEADS, DIM), drawn(context, KEY_HEADS, DIM))
            cache.advance([context])
            yield f"attention, one token after {context}, {name} cache", *both(cache.packing([1]), *token, cache=cache)


def products() -> Iterator[tuple[str, Run, Run]]:
    """Linear layers: the tower's in bfloat16, the decoder's in 4 bits, and quantizing."""
    x = drawn(PATCHES, TOWER)
    weights = [drawn(TOWER, TOWER) / 32 for _ in range(3)]
    gate, up, down = drawn(TOWER_WIDE, TOWER) / 32, drawn(TOWER_WIDE, TOWER) / 32, drawn(TOWER, TOWER_WIDE) / 64
    yield (
        f"tower's q, k, v, {PATCHES} patches",
        lambda: dense_linear(x, weights, [None] * 3),
        lambda: [F.linear(x, weight) for weight in weights],
    )
    yield (
        f"tower's feed-forward block, {PATCHES} patches",
        lambda: dense_linear(dense_gated_linear(x, gate, up), [down], [None]),
        lambda: torch.cat(
            [F.linear(F.silu(F.linear(rows, gate)).mul_(F.linear(rows, up)), down) for rows in x.split(512)]
        ),
    )
    wide = [drawn(WIDE, WIDTH) / WIDTH**0.5 for _ in range(2)]
    quantized = [quantize_weight(weight, 4, 64) for weight in wide]
    for rows in (1, ROWS):
        some = drawn(rows, WIDTH)
        yield f"gate and up in 4 bits, {rows} rows, beside unpacking", *_gated(some, quantized)
        yield f"gate and up in 4 bits, {rows} rows, beside bfloat16", _gated(some, quantized)[0], _dense(some, wide)
    part = wide[0][:512]
    yield (
        "packing 512 x 5120 into 4 bits",
        lambda: quantize_weight(part, 4, 64),
        lambda: quantize_reference(part, 4, 64),
    )


def _gated(x: Tensor, quantized: list[QuantizedWeight]) -> tuple[Run, Run]:
    return lambda: gated_linear(x, *quantized), lambda: dequantized_gated_linear(x, *quantized)


def _dense(x: Tensor, weights: list[Tensor]) -> Run:
    return lambda: F.silu(F.linear(x, weights[0])) * F.linear(x, weights[1])


GROUPS = {"rowwise": rowwise, "attention": attending, "products": products}


def seconds(run: Run) -> float:
    """Of one call, after a pause."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    library = kernels()
    isa = None if library is None else library.isa
    found = []
    print(f"{'':52} {'fast':>9} {'twin':>9}  times")
    with torch.inference_mode():
        for group in args.only:
            for name, fast, slow in GROUPS[group]():
                fast(), slow()
                pairs = [(seconds(fast), seconds(slow)) for _ in range(args.runs)]
                ms, twin = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
                print(f"{name:52} {ms:9.3f} {twin:9.3f} {twin / ms:6.1f}")
                found.append({"operation": name, "ms": round(ms, 3), "twin_ms": round(twin, 3)})
    machine = describe(isa, torch.get_num_threads())
    date = datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds")
    print(json.dumps({"benchmark": "bench_twins", "date": date, "machine": machine, "operations": found}))


if __name__ == "__main__":
    main()
