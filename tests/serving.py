"""What tests of the engine share: a small random Pixtral, prompts with images for it, a tokenizer of letters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from oracle import greedy
from random_models import BREAK, END, IMG, PATCH, llava_dict, random_llava
from torch import Tensor

from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import Engine
from pixtral.engine.input_processor import place_images
from pixtral.engine.outputs import RequestOutput
from pixtral.engine.request import EngineRequest
from pixtral.engine.sampling_params import SamplingParams

CONTEXT = 96
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


class Letters:
    """A tokenizer: token 32 + k is the k-th printable character, the smaller ones are control tokens."""

    byte_level = True
    joins_over_special = False

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id]) if token_id >= 32 else None

    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) if i >= 32 else "" if skip_special_tokens else f"<{i}>" for i in ids)


@functools.cache
def small_model() -> Any:
    """Two blocks, a short context, float32; it does not say [IMG], of which the oracle would expect pixels."""
    text = {"max_position_embeddings": CONTEXT, "num_hidden_layers": 2}
    model = random_llava(llava_dict(text=text, vision={"num_hidden_layers": 1})).requires_grad_(False)
    model.lm_head.weight[IMG] = 0
    return model


@functools.cache
def make_image(name: str, rows: int, cols: int) -> Tensor:
    """Pixels that depend on the name: images of one size and several names have the same ids."""
    generator = torch.Generator().manual_seed(hash((len(name), *name.encode(), rows, cols)) % 2**31)
    return torch.randn(3, rows * PATCH, cols * PATCH, generator=generator)


Part = int | tuple[str, int, int]


def build(parts: Sequence[Part]) -> tuple[tuple[int, ...], list[Tensor]]:
    """Words, and images (name, rows, columns), to ids and pixels."""
    ids: list[int] = []
    pixels: list[Tensor] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            name, rows, cols = part
            ids += ([IMG] * cols + [BREAK]) * rows
            ids[-1] = END
            pixels.append(make_image(name, rows, cols))
    return tuple(ids), pixels


def ask(name: str, parts: Sequence[Part], params: SamplingParams = GREEDY, **kwargs: Any) -> EngineRequest:
    """A request of words and images."""
    ids, pixels = build(parts)
    images = place_images(ids, pixels, image_token=IMG, patch_size=PATCH)
    return EngineRequest(name, ids, params, images, **kwargs)


@functools.cache
def expected(parts: tuple[Part, ...], new: int, ends: tuple[int, ...] = ()) -> list[int]:
    """The new tokens by the oracle."""
    ids, pixels = build(parts)
    return greedy(small_model(), ids, pixels, new, ends)


def engine_of(tokens: int = 1024, **settings: Any) -> Engine:
    """An engine on the small model whose cache holds so many tokens."""
    model = small_model()
    text = model.text_config
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    eos = settings.pop("eos_token_ids", ())
    clock = {"clock": settings.pop("clock")} if "clock" in settings else {}
    config = EngineConfig(kv_cache_bytes=tokens * per_token, **{"max_stretch": None, **settings})
    return Engine(model, config, tokenizer=Letters(), eos_token_ids=eos, **clock)


def run(engine: Engine, *requests: EngineRequest) -> dict[tuple[str, int], Result]:
    """Add, step until all have ended, and join the outputs."""
    for request in requests:
        engine.add_request(request)
    outputs: list[RequestOutput] = []
    while engine.has_unfinished:
        outputs += engine.step()
        engine.check()
    return joined(outputs)


class Result:
    """The outputs of one continuation, joined."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.logprobs: list[Any] = []
        self.last: RequestOutput | None = None

    def add(self, output: RequestOutput) -> None:
        assert self.last is None, "nothing comes after the end"
        self.ids += output.token_ids
        self.text += output.text
        self.logprobs += output.logprobs or ()
        if output.finish_reason is not None:
            assert output.usage is not None and output.usage.completion_tokens == len(self.ids)
            self.last = output


def joined(outputs: Sequence[RequestOutput]) -> dict[tuple[str, int], Result]:
    """By request and index."""
    results: dict[tuple[str, int], Result] = {}
    for output in outputs:
        results.setdefault((output.request_id, output.index), Result()).add(output)
    return results
