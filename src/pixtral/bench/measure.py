"""The phases of an answer, timed through the public interface: image, prompt, first token, new tokens, memory."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixtral.bench.ceilings import Ceilings, Meter, seconds_of
from pixtral.bench.machine import Resident, reset_peak, resident
from pixtral.bench.random_model import FilledContext
from pixtral.bench.settings import Settings
from pixtral.bench.work import Measurement, Work, decoder_work, idle_share, image_work
from pixtral.engine.model import cache_dtype
from pixtral.engine.request import context_length
from pixtral.engine.sampling_params import SamplingParams
from pixtral.generation.loop import Generation, Prompt
from pixtral.images.geometry import expand
from pixtral.images.processors import PixtralImageProcessorFast
from pixtral.models import LlavaForConditionalGeneration
from pixtral.ops.kv_cache import token_bytes

_QUESTION = 20  # tokens of text that go with an image
_WARM_UP = 32  # tokens of the prompt that is not timed
_GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": None, "repetition_penalty": None}


class Bench:
    """Measures one model, with the ceilings of the machine measured beside every run."""

    def __init__(
        self, model: LlavaForConditionalGeneration, settings: Settings, meter: Meter, *, of_layers: int | None = None
    ) -> None:
        """
        Args:
            model: in memory, in evaluation mode, on the CPU.
            settings: of the measurement.
            meter: of the threads in use.
            of_layers: layers of the whole decoder where the model has only some of them.

        Raises:
            ConfigError: the model's context is too short for the settings.
        """
        settings.check(context_length(model.text_config))
        self.model = model
        self.settings = settings
        self.meter: Meter | None = meter
        self.ceilings = meter.ceilings()
        self.layers = model.text_config.num_hidden_layers
        self.of_layers = of_layers or self.layers
        self._rng = np.random.default_rng(0)
        vision = model.config.vision_config
        self._processor = PixtralImageProcessorFast(
            patch_size=vision.patch_size, size={"longest_edge": vision.image_size}
        )
        self._head_seconds: float | None = None

    def image(self, side: int) -> Measurement:
        """One image through tower and projector."""
        pixels = self._pixels(side)["pixel_values"][0].to(self.model.dtype)
        self._encode(pixels[:, :64, :64])
        runs = [self._timed(lambda: self._encode(pixels)) for _ in range(self.settings.repeat)]
        return Measurement.of(runs, image_work(self.model, self._patches(pixels)))

    def prompt(self) -> Measurement:
        """A prompt of random text, to its first token."""
        length = self.settings.prompt
        self._first_token({"input_ids": self._ids(min(_WARM_UP, length))})
        runs = []
        for _ in range(self.settings.repeat):
            inputs = {"input_ids": self._ids(length)}
            runs.append(self._timed(lambda inputs=inputs: self._first_token(inputs)))  # type: ignore[misc]
        work = decoder_work(self.model, length, length, self._cache_bytes())
        return Measurement.of(runs, work, tokens=length, extra=self._missing_seconds(runs, rows=length))

    def first_token(self, side: int) -> Measurement:
        """From an image and a question to the first token, preprocessing included."""
        photo = self._image(side)
        runs = [self._timed(lambda: self._first_token(self._ask(photo))) for _ in range(self.settings.repeat)]
        pixels, tokens = self._pixels(side)["pixel_values"][0], self._ask(photo)["input_ids"].shape[1]
        image = self._timed(lambda: self._encode(pixels))[0] if self.layers < self.of_layers else 0.0
        work = decoder_work(self.model, tokens, tokens, self._cache_bytes())
        return Measurement.of(
            runs,
            work + image_work(self.model, self._patches(pixels)),
            tokens=tokens,
            extra=self._missing_seconds(runs, image, tokens),
        )

    def new(self, context: int) -> Measurement:
        """Tokens after a context, one by one; `runs` are those of single tokens."""
        runs: list[tuple[float, Ceilings]] = []
        works: list[Work] = []
        for step in range(self.settings.repeat * self.settings.new):
            if step % self.settings.new == 0:
                generation = self._generation(context, self.settings.new + 1)
                generation.step()  # the prompt, and the first token
            runs.append(self._timed(generation.step))
            works.append(decoder_work(self.model, 1, context + 1 + step % self.settings.new, self._cache_bytes()))
        return Measurement.of(runs, works[len(works) // 2], tokens=1, extra=self._missing_seconds(runs))

    def memory(self) -> Resident | None:
        """While answering about an image with a full context; to be called last, since it drops the meter.

        The image, and as many tokens at the end of the context as the prompt has, are run; the rest is random.
        """
        self.meter = None  # its buffer is not part of the model
        gc.collect()
        reset_peak()
        for side in self.settings.images[:1]:
            self._encode(self._pixels(side)["pixel_values"][0].to(self.model.dtype))
        generation = self._generation(self.settings.memory_context, 3, computed=self.settings.prompt)
        for _ in generation:
            found = resident()
        return found

    def _generation(self, context: int, new: int, computed: int = 1) -> Generation:
        """The loop before its first step, with a context of that many tokens."""
        computed = context if self.settings.compute_context else min(computed, context)
        row = self.model.embed(self._ids(1)[0])
        params = SamplingParams(temperature=0.0, max_tokens=new)
        filled = FilledContext(self.model, context, computed)
        prompt = Prompt(row.expand(context, -1))
        return Generation(filled, [prompt], [params], kv_cache=self.settings.kv_cache)

    def _first_token(self, inputs: dict[str, Any]) -> None:
        run = self.model.generate_steps(**inputs, **_GREEDY, max_new_tokens=1, kv_cache=self.settings.kv_cache)
        next(iter(run))

    def _ask(self, image: Image.Image) -> dict[str, Any]:
        """Inputs of generate(): an image and a question."""
        config, made = self.model.config, self._processor(image, return_tensors="pt")
        grid = self._processor.grid_of(*image.size)
        tokens = expand(
            grid,
            config.image_token_index,
            self._text_token(config.image_break_token_id),
            self._text_token(config.image_end_token_id),
        )
        ids = torch.cat([torch.tensor([tokens]), self._ids(_QUESTION)], dim=1)
        return {"input_ids": ids, "pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}

    def _encode(self, pixels: Tensor) -> None:
        with torch.no_grad():
            self.model.encode_images([pixels])

    def _image(self, side: int) -> Image.Image:
        return Image.fromarray(self._rng.integers(0, 256, (side, side, 3), dtype=np.uint8))

    def _pixels(self, side: int) -> Any:
        return self._processor(self._image(side), return_tensors="pt")

    def _patches(self, pixels: Tensor) -> int:
        rows, cols = self.model.model.vision_tower.grid(pixels)
        return rows * cols

    def _ids(self, count: int) -> Tensor:
        """Random text, (1, count)."""
        ids = self._rng.integers(0, self.model.text_config.vocab_size, (1, count))
        return torch.from_numpy(np.where(ids == self.model.config.image_token_index, ids + 1, ids))

    def _text_token(self, known: int | None) -> int:
        """A special token's id, or another one where the configuration has none."""
        return self.model.config.image_token_index + 1 if known is None else known

    def _cache_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return token_bytes(self.model.text_config, cache_dtype(self.settings.kv_cache, self.model.dtype))

    def _timed(self, run: Callable[[], object]) -> tuple[float, Ceilings]:
        """Seconds of a call, and the ceilings around it."""
        assert self.meter is not None
        before = self.meter.read()
        seconds = seconds_of(run)
        return seconds, dataclasses.replace(self.ceilings, read=(before + self.meter.read()) / 2)

    def _missing_seconds(self, runs: list[tuple[float, Ceilings]], image: float = 0.0, rows: int = 1) -> float:
        """Seconds that missing layers would have added to the median of the runs of `rows` tokens.

        The image and the output layer are subtracted first. The last layer does less than the others for tokens whose
        logits are not wanted.
        """
        if self.layers == self.of_layers:
            return 0.0
        if self._head_seconds is None:
            hidden = torch.zeros(1, self.model.text_config.hidden_size, dtype=self.model.dtype)
            with torch.no_grad():
                times = [self._timed(lambda: self.model.logits(hidden))[0] for _ in range(3)]
            self._head_seconds = float(np.median(times))
        median = float(np.median([seconds for seconds, _ in runs]))
        rest = max(median - image - self._head_seconds, 0.0)
        return rest * (self.of_layers - self.layers) / (self.layers - idle_share(self.model) * (rows - 1) / rows)
