"""The model to measure: one of a named shape with random weights, or one that is loaded."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from pixtral.bench.ceilings import READ_BYTES
from pixtral.bench.machine import resident
from pixtral.bench.random_model import empty_model, fill_random, resident_bytes
from pixtral.bench.settings import Settings
from pixtral.bench.work import weight_bytes
from pixtral.checkpoints.memory import available_memory, gigabytes
from pixtral.configuration import LlavaConfig
from pixtral.configuration.shapes import shape_config, with_layers
from pixtral.engine.model import cache_dtype
from pixtral.engine.request import context_length
from pixtral.errors import ConfigError
from pixtral.models import LlavaForConditionalGeneration
from pixtral.ops.kv_cache import token_bytes
from pixtral.quantization import QuantizationArguments

_WORK_SPACE = 1 << 30  # activations, PyTorch itself, and the meter of the ceilings


@dataclasses.dataclass(frozen=True)
class MeasuredModel:
    """A model in memory, with facts for the report.

    Attributes:
        model: the public class, on the CPU.
        of_layers: layers of the whole decoder, where the model has only some of them.
        facts: name, layers, formats and size.
        load: seconds and memory of making or loading it.
    """

    model: LlavaForConditionalGeneration
    of_layers: int
    facts: dict[str, Any]
    load: dict[str, Any]


def model_of_shape(
    shape: str, asked: QuantizationArguments, settings: Settings, layers: int | None = None
) -> MeasuredModel:
    """A model of a named shape with random weights.

    Args:
        layers: of the decoder that are made; None makes all.

    Raises:
        ConfigError: no such shape, settings that do not fit it, or too little memory; checked before it is made.
    """
    whole = shape_config(shape)
    of_layers = whole.text_config.num_hidden_layers
    config = whole if layers is None else with_layers(whole, layers)
    settings.check(context_length(config.text_config))
    started = time.perf_counter()
    model = empty_model(config, asked)
    _check_memory(model, shape, settings, asked)
    fill_random(model)
    return _measured(model, of_layers, shape, "random", time.perf_counter() - started)


def loaded_model(path_or_id: str, asked: QuantizationArguments, settings: Settings, **hub: Any) -> MeasuredModel:
    """A model from a folder or the Hub; arguments as of `from_pretrained`.

    Raises:
        CheckpointError: it cannot be loaded.
        ConfigError: settings that do not fit it.
    """
    started = time.perf_counter()
    model = LlavaForConditionalGeneration.from_pretrained(
        path_or_id,
        device_map="cpu",
        quantization=asked.quantization,
        quantize_vision=asked.quantize_vision,
        activations=asked.activations,
        **hub,
    )
    seconds = time.perf_counter() - started
    settings.check(context_length(model.text_config))
    return _measured(model, model.text_config.num_hidden_layers, path_or_id, "loaded", seconds)


def _measured(
    model: LlavaForConditionalGeneration, of_layers: int, name: str, weights: str, seconds: float
) -> MeasuredModel:
    quantizer = getattr(model, "quantizer", None)
    memory = resident()
    facts = {
        "name": name,
        "weights": weights,
        "layers": model.text_config.num_hidden_layers,
        "of_layers": of_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if quantizer is None else quantizer.to_dict(),
        "weight_gb": round(weight_bytes(model) / 1e9, 3),
    }
    peak = None if memory is None else round(memory.peak / 1e9, 3)
    return MeasuredModel(model, of_layers, facts, {"seconds": round(seconds, 2), "peak_gb": peak})


def needed_bytes(model: LlavaForConditionalGeneration, settings: Settings) -> int:
    """Memory for measuring a model: weights, the longest KV cache, and activations."""
    longest = max(settings.prompt, settings.memory_context, *settings.contexts) + settings.new
    cache = longest * token_bytes(model.text_config, cache_dtype(settings.kv_cache, model.dtype))
    return resident_bytes(model) + cache + READ_BYTES + _WORK_SPACE


def _check_memory(
    model: LlavaForConditionalGeneration, shape: str, settings: Settings, asked: QuantizationArguments
) -> None:
    """Refuse a model that does not fit, naming options that do."""
    available = available_memory(torch.device("cpu"))
    need = needed_bytes(model, settings)
    if available is None or need <= available:
        return
    ways = []
    config = shape_config(shape)
    layers = model.text_config.num_hidden_layers
    if asked.quantization != "int4":
        small = needed_bytes(empty_model(with_layers(config, layers), QuantizationArguments("int4")), settings)
        if small <= available:
            ways.append(f"--quantization int4 ({gigabytes(small)})")
    fitting = _layers_that_fit(config, asked, settings, available)
    if fitting:
        ways.append(f"--layers {fitting} of its {config.text_config.num_hidden_layers}")
    advice = f"these fit: {', or '.join(ways)}" if ways else "choose a smaller shape"
    raise ConfigError(
        f"{shape} with {layers} layers needs {gigabytes(need)}, a context of {settings.memory_context} tokens "
        f"included, but {gigabytes(available)} are available; {advice}"
    )


def _layers_that_fit(config: LlavaConfig, asked: QuantizationArguments, settings: Settings, available: int) -> int:
    """How many layers of the decoder fit."""
    one, two = (needed_bytes(empty_model(with_layers(config, n), asked), settings) for n in (1, 2))
    return min(max(1 + (available - one) // (two - one), 0), config.text_config.num_hidden_layers)
