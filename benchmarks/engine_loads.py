"""The bare engine under the loads of a server, without HTTP: each client sends its next request when one is answered.

    python benchmarks/engine_loads.py MODEL [--clients 1 8 32] [--load text different same large] [--profile]

Every request is a prompt of about 92 tokens and is answered with 64, read into text as a server would. The loads:

    text       words alone
    different  a 256x256 image of its own in each
    same       one 256x256 image in all
    large      a 512x512 image of its own in each

Prints tokens per second and the time to the first token, then, with --profile, where Python's time goes; ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from pixtral.assistant import load
from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import Engine
from pixtral.engine.input_processor import place_images
from pixtral.engine.request import EngineRequest
from pixtral.engine.sampling_params import SamplingParams

SIDES = {"text": 0, "different": 256, "same": 256, "large": 512}


def requests(model: Any, kind: str, count: int, new: int, seed: int) -> Iterator[EngineRequest]:
    """Prompts that differ from the first word on."""
    draw = random.Random(f"{kind} {seed}")
    patch, token, side = model.config.vision_config.patch_size, model.config.image_token_index, SIDES[kind]
    grid = side // patch
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
    for number in range(count):
        words = tuple(draw.randrange(1000, min(model.text_config.vocab_size, 30000)) for _ in range(89))
        if not side:
            yield EngineRequest(f"{kind} {seed} {number}", (1, 3, *words, 4), params)
            continue
        generator = torch.Generator().manual_seed(0 if kind == "same" else 1000 * seed + number)
        pixels = torch.randn(3, side, side, generator=generator)
        image = ([token] * grid + [12]) * grid
        ids = (1, 3, *image[:-1], 13, *words, 4)
        images = place_images(ids, [pixels], image_token=token, patch_size=patch)
        yield EngineRequest(f"{kind} {seed} {number}", ids, params, images)


def run(engine: Engine, asked: Iterator[EngineRequest], clients: int) -> dict[str, float]:
    """Keep `clients` requests in the engine until all are answered."""
    waiting, begun, first = list(asked)[::-1], {}, []
    tokens, begin = 0, time.perf_counter()
    alive = 0
    while waiting or alive:
        while waiting and alive < clients:
            request = waiting.pop()
            engine.add_request(request)
            begun[request.request_id] = time.perf_counter()
            alive += 1
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            tokens += len(output.token_ids)
            if output.token_ids and output.request_id in begun:
                first.append(now - begun.pop(output.request_id))
            alive -= output.finish_reason is not None
    seconds = time.perf_counter() - begin
    p95 = statistics.quantiles(first, n=20)[-1]
    return {
        "tokens_per_s": tokens / seconds,
        "first_p50_ms": 1e3 * statistics.median(first),
        "first_p95_ms": 1e3 * p95,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--load", nargs="+", choices=list(SIDES), default=["text", "different", "same"])
    parser.add_argument("--rounds", type=int, default=4, help="requests of each client")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    assistant = load(args.model, threads=args.threads, progress=False)
    model: Any = assistant.model.eval()
    engine = Engine(model, EngineConfig(), tokenizer=assistant.processor.tokenizer)
    result: dict[str, Any] = {"benchmark": "engine loads", "threads": args.threads, "torch": torch.__version__}
    for kind in args.load:
        run(engine, requests(model, kind, 2, 8, seed=0), 1)
        for seed, clients in enumerate(args.clients, 1):
            asked = list(requests(model, kind, max(args.rounds * clients, 8), args.new, seed))
            profile = cProfile.Profile() if args.profile else None
            if profile:
                profile.enable()
            figures = run(engine, iter(asked), clients)
            result[f"{kind} {clients}"] = {key: round(value, 2) for key, value in figures.items()}
            print(f"{kind:10s}{clients:3d}  " + "  ".join(f"{key} {value:.1f}" for key, value in figures.items()))
            if profile:
                profile.disable()
                pstats.Stats(profile).sort_stats("tottime").print_stats(28)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
