"""The engine under many requests: its own cost per step, batching, long prompts beside answers, images again.

    python benchmarks/bench_engine.py [--size middle|tiny] [--threads 2] [--only overhead batching ...]

"middle" is a random Pixtral of about 320 M parameters in bfloat16, "tiny" the embedded model. Prints

    overhead   milliseconds per step at 8 answers that are neither embedding, decoder nor output layer
    batching   seconds of 8 text requests at once, and one after the other
    stretch    gaps between the tokens of 4 running answers while a long prompt is read, and without it
    image      seconds to the first token of a first and of a second question about one image
    async      tokens per second of 8 clients of AsyncEngine, and of the bare engine

and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pixtral.assets import tiny_path
from pixtral.configuration import LlavaConfig
from pixtral.engine.async_engine import AsyncEngine
from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import Engine
from pixtral.engine.input_processor import place_images
from pixtral.engine.request import EngineRequest
from pixtral.engine.sampling_params import SamplingParams
from pixtral.models import LlavaForConditionalGeneration as Pretrained
from pixtral.models.llava import LlavaForConditionalGeneration

MIDDLE = {
    "image_token_index": 10,
    "text_config": {
        "model_type": "mistral", "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 2816, "head_dim": 64,
        "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 16384,
        "rope_theta": 1e6, "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "model_type": "pixtral", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12,
        "num_attention_heads": 8, "hidden_act": "silu", "patch_size": 16, "image_size": 1024,
    },
    "projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
}  # fmt: skip


def build(size: str) -> Any:
    """The model."""
    if size == "tiny":
        return Pretrained.from_pretrained(tiny_path(), progress=False).eval()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(MIDDLE)).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return model


def prompt(model: Any, length: int, seed: int) -> tuple[int, ...]:
    """A random prompt of ordinary tokens."""
    draw = random.Random(seed)
    special = {model.config.image_token_index}
    words = [i for i in range(20, min(model.text_config.vocab_size, 30000)) if i not in special]
    return tuple(draw.choice(words) for _ in range(length))


def params(new: int) -> SamplingParams:
    """Greedy, of a fixed length."""
    return SamplingParams(temperature=0.0, max_tokens=new)


def engine_for(model: Any, **settings: Any) -> Engine:
    """An engine with a KV cache for all measurements."""
    return Engine(model, EngineConfig(kv_cache_bytes=2**30, **settings))


class Timed:
    """Seconds spent in the model's own methods."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self._model = model
        for name in ("embed", "forward_packed", "logits"):
            setattr(model, name, self._timed(getattr(model, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            result = method(*args)
            self.seconds += time.perf_counter() - begin
            return result

        return run

    def stop(self) -> None:
        """Give the model its methods back."""
        for name in ("embed", "forward_packed", "logits"):
            delattr(self._model, name)


def overhead(model: Any, answers: int = 8, steps: int = 60) -> dict[str, float]:
    """Of steps in which all answers get a token."""
    engine = engine_for(model)
    for i in range(answers):
        engine.add_request(EngineRequest(str(i), prompt(model, 40, i), params(steps + 20)))
    for _ in range(10):
        engine.step()
    timed = Timed(model)
    rows = []
    for _ in range(steps):
        timed.seconds, begin = 0.0, time.perf_counter()
        assert len(engine.step()) == answers
        rows.append((time.perf_counter() - begin, timed.seconds))
    timed.stop()
    return {
        "step_ms": 1e3 * statistics.median(whole for whole, _ in rows),
        "model_ms": 1e3 * statistics.median(own for _, own in rows),
        "overhead_ms": 1e3 * statistics.median(whole - own for whole, own in rows),
    }


def finish(engine: Engine) -> int:
    """Step until all have ended; tokens."""
    tokens = 0
    while engine.has_unfinished:
        tokens += sum(len(output.token_ids) for output in engine.step())
    return tokens


def batching(model: Any, requests: int = 8, length: int = 64, new: int = 48) -> dict[str, float]:
    """At once, and one after the other."""
    engine = engine_for(model)
    engine.add_request(EngineRequest("warm", prompt(model, length, 99), params(4)))
    finish(engine)
    asked = [EngineRequest(str(i), prompt(model, length, i), params(new)) for i in range(requests)]
    begin = time.perf_counter()
    for one in asked:
        engine.add_request(one)
    finish(engine)
    together = time.perf_counter() - begin
    engine = engine_for(model)
    begin = time.perf_counter()
    for one in asked:
        engine.add_request(one)
        finish(engine)
    alone = time.perf_counter() - begin
    return {"together_s": together, "one_by_one_s": alone, "share": together / alone}


def stretch(model: Any, answers: int = 4, length: int = 4000) -> dict[str, float]:
    """Gaps of the running answers before, and while the long prompt is read."""
    engine = engine_for(model)
    for i in range(answers):
        engine.add_request(EngineRequest(str(i), prompt(model, 40, i), params(4000)))

    def gaps(until: Callable[[], bool]) -> list[float]:
        found, last = [], time.perf_counter()
        while not until():
            engine.step()
            now = time.perf_counter()
            found.append(now - last)
            last = now
        return found

    for _ in range(10):
        engine.step()
    steps = iter(range(60))
    normal = gaps(lambda: next(steps, None) is None)
    engine.add_request(EngineRequest("long", prompt(model, length, 1000), params(1)))
    begin = time.perf_counter()
    during = gaps(lambda: not engine.is_known("long"))
    reading = time.perf_counter() - begin
    for i in range(answers):
        engine.abort(str(i))
    engine.add_request(EngineRequest("again", prompt(model, length, 1001), params(1)))
    begin = time.perf_counter()
    finish(engine)
    median, p95 = statistics.median(during), statistics.quantiles(during, n=20)[-1]
    usual = statistics.median(normal)
    return {
        "normal_gap_ms": 1e3 * usual, "gap_ms": 1e3 * median, "gap_p95_ms": 1e3 * p95, "gap_max_ms": 1e3 * max(during),
        "stretch": median / usual, "stretch_p95": p95 / usual, "stretch_max": max(during) / usual, "reading_s": reading,
        "reading_alone_s": time.perf_counter() - begin,
    }  # fmt: skip


def image(model: Any, side: int = 512) -> dict[str, float]:
    """First tokens of two questions about one image."""
    patch, token = model.config.vision_config.patch_size, model.config.image_token_index
    engine, seconds = engine_for(model), []
    grid = side // patch
    places = (*([token] * grid + [12]) * grid,)
    warm = torch.randn(3, 4 * patch, 4 * patch)
    for number, pixels in enumerate((warm, torch.randn(3, side, side, generator=torch.Generator().manual_seed(1)))):
        rows = pixels.shape[1] // patch
        for question in range(2):
            ids = (1, *(places if rows == grid else ([token] * rows + [12]) * rows), *prompt(model, 20, question))
            begin = time.perf_counter()
            images = place_images(ids, [pixels], image_token=token, patch_size=patch)
            engine.add_request(EngineRequest(f"{number}.{question}", ids, params(1), images))
            engine.step()
            finish(engine)
            seconds.append(time.perf_counter() - begin)
    return {"first_s": seconds[2], "second_s": seconds[3], "share": seconds[3] / seconds[2]}


def asynchronous(model: Any, clients: int = 8, new: int = 48) -> dict[str, float]:
    """Tokens per second through the thread and the queues, and without them."""
    asked = [EngineRequest(str(i), prompt(model, 64, i), params(new)) for i in range(clients)]

    async def through() -> float:
        async with AsyncEngine(engine_for(model)) as engine:

            async def client(one: EngineRequest) -> None:
                async for _ in engine.generate(one):
                    pass

            begin = time.perf_counter()
            await asyncio.gather(*map(client, asked))
            return time.perf_counter() - begin

    def bare() -> float:
        engine, begin = engine_for(model), time.perf_counter()
        for one in asked:
            engine.add_request(one)
        finish(engine)
        return time.perf_counter() - begin

    both = [(asyncio.run(through()), bare()) for _ in range(3)]
    tokens = clients * new
    rate, plain = (tokens / statistics.median(column) for column in zip(*both, strict=True))
    return {"async_tokens_per_s": rate, "bare_tokens_per_s": plain, "share": rate / plain}


PARTS = {"overhead": overhead, "batching": batching, "stretch": stretch, "image": image, "async": asynchronous}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["middle", "tiny"], default="middle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args.size)
    result: dict[str, Any] = {
        "benchmark": "engine", "size": args.size, "threads": args.threads, "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    for name in args.only:
        figures = PARTS[name](model, **({"length": 1000} if args.size == "tiny" and name == "stretch" else {}))
        result[name] = {key: round(value, 4) for key, value in figures.items()}
        print(f"{name:10s}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
