"""How long a large checkpoint takes to be quantized and to be ready, and at what memory.

    python benchmarks/bench_loading.py --dir FOLDER [--shape pixtral-12b] [--layers 10] [--to int4]

Writes a checkpoint in bfloat16 with random weights and the first LAYERS blocks of the decoder (10 of Pixtral-12B's 40
take 9 GB in FOLDER; it is deleted afterwards), then, each in a process of its own: loads it with quantization, runs
`pixtral quantize`, and loads what that wrote. Seconds for all blocks are bounded by so many times those for LAYERS. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pixtral
from pixtral.bench.machine import resident
from pixtral.checkpoints.names import HF, OURS
from pixtral.checkpoints.opening import build_empty
from pixtral.checkpoints.safetensors_io import write_file
from pixtral.checkpoints.save import plan_shards, write_index
from pixtral.configuration.shapes import shape_config, with_layers
from pixtral.models.llava import LlavaForConditionalGeneration

POOL = 1 << 26  # random numbers that all weights are taken from
SHARD_BYTES = 5 * 10**9


def write_checkpoint(folder: pathlib.Path, shape: str, layers: int) -> int:
    """A checkpoint in Hugging Face's layout; its bytes."""
    config = with_layers(shape_config(shape), layers)
    model = build_empty(LlavaForConditionalGeneration, config)
    named = ((HF.spell(OURS.canonical(name)) or name, parameter) for name, parameter in model.named_parameters())
    shapes = {name: (torch.bfloat16, tuple(parameter.shape)) for name, parameter in named}
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()

    def values(names: list[str]) -> Iterator[Tensor]:
        for place, name in enumerate(names):
            shape = shapes[name][1]
            count, start = math.prod(shape), place * 500_000 % (POOL // 2)
            yield (
                torch.ones(shape, dtype=torch.bfloat16)
                if len(shape) == 1
                else _repeated(pool[start:], count).view(shape)
            )

    shards = plan_shards(shapes, "model", SHARD_BYTES)
    for file, names in shards.items():
        write_file(folder / file, {name: shapes[name] for name in names}, values(names))
    write_index(folder, "model", shards, shapes)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "dtype": "bfloat16"}))
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def _repeated(pool: Tensor, count: int) -> Tensor:
    return pool.repeat(-(-count // len(pool)))[:count]


def load(folder: str, quantization: str | None) -> dict[str, Any]:
    """Seconds until the model is there, and memory (what a process with PyTorch takes anyway is part of it)."""
    start = time.perf_counter()
    model = pixtral.LlavaForConditionalGeneration.from_pretrained(folder, quantization=quantization, dtype="bfloat16")
    seconds = time.perf_counter() - start
    found = resident()
    layers = len(model.decoder.layers)
    return {
        "seconds": round(seconds, 2),
        "decoder_layers": layers,
        "model_gb": round(model.get_memory_footprint() / 1e9, 3),
        "peak_gb": None if found is None else round(found.peak / 1e9, 3),
        "after_gb": None if found is None else round(found.now / 1e9, 3),
    }


def run(*words: str) -> dict[str, Any]:
    """This program again, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Parse, measure, print."""
    if sys.argv[1:2] == ["load"]:
        print(json.dumps(load(sys.argv[2], sys.argv[3] if sys.argv[3:] else None)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--shape", default="pixtral-12b")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--to", default="int4")
    args = parser.parse_args()
    every = shape_config(args.shape).text_config.num_hidden_layers
    plain, quantized = args.dir / "plain", args.dir / "quantized"
    plain.mkdir(parents=True)
    try:
        written = write_checkpoint(plain, args.shape, args.layers)
        print(f"{args.layers} of {every} decoder layers, {written / 1e9:.2f} GB in bfloat16")
        loaded = run("load", str(plain), args.to)
        start = time.perf_counter()
        command = [sys.executable, "-m", "pixtral.cli", "quantize", str(plain), str(quantized), "--to", args.to]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        stored = time.perf_counter() - start
        ready = min((run("load", str(quantized)) for _ in range(2)), key=lambda found: float(found["seconds"]))
    finally:
        shutil.rmtree(plain)
        shutil.rmtree(quantized, ignore_errors=True)
    scale = every / args.layers  # too much for all that is not a decoder layer: a bound from above
    bounds = {"loading": round(loaded["seconds"] * scale), "quantizing": round(stored * scale)}
    result = {
        "benchmark": "bench_loading",
        "shape": args.shape,
        "layers": args.layers,
        "of_layers": every,
        "to": args.to,
        "plain_gb": round(written / 1e9, 2),
        "loading": loaded,
        "quantizing_seconds": round(stored, 1),
        "stored": ready,
        "all_layers_seconds_at_most": bounds,
    }
    memory = f"peak {loaded['peak_gb']} GB for {loaded['after_gb']} GB after"
    print(f"quantized while loading: {loaded['seconds']} s, {memory}")
    print(f"pixtral quantize: {stored:.1f} s; its result is ready in {ready['seconds']} s")
    print(f"all {every} layers: at most {scale:.0f} times that, {bounds}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
