"""Transformers on the same shapes in the same process, for `pixtral bench --compare transformers`."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixtral.bench.ceilings import seconds_of
from pixtral.bench.measured_model import MeasuredModel
from pixtral.bench.settings import Settings
from pixtral.checkpoints.memory import available_memory, gigabytes
from pixtral.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from collections.abc import Callable

_FEW_LAYERS = 4  # of the decoder, where all of them do not fit in bfloat16
_SPARE = 2 << 30  # for its activations and cache


def measure_transformers(measured: MeasuredModel, settings: Settings, log: Callable[[str], None]) -> dict[str, Any]:
    """Image, prompt and new tokens, in bfloat16 and with random weights where the model's own cannot be used.

    Raises:
        MissingDependency: Transformers is not installed.
        ConfigError: not even a few layers fit.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("--compare transformers needs it: pip install transformers") from error
    layers = _layers_that_fit(measured)
    log(f"Transformers with {layers} of {measured.of_layers} layers in bfloat16")
    model, same = _build(transformers, measured, layers)
    figures: dict[str, Any] = {"image": [], "new": []}
    with torch.no_grad():
        for side in settings.images:
            pixels = torch.randn(1, 3, side, side, dtype=torch.bfloat16)
            sizes = torch.tensor([[side, side]])
            small = min(side, 64)
            model.get_image_features(pixels[..., :small, :small], image_sizes=torch.tensor([[small, small]]))
            encode = functools.partial(model.get_image_features, pixels, image_sizes=sizes)
            runs = [seconds_of(encode) for _ in range(settings.repeat)]
            figures["image"].append({"side": side, **_figure(runs)})
        hidden = torch.zeros(1, model.lm_head.in_features, dtype=torch.bfloat16)
        head = statistics.median(seconds_of(lambda: model.lm_head(hidden)) for _ in range(3))
        grow = measured.of_layers / layers
        _generate(model, 32, 2)
        prompts, tokens = [], []
        for _ in range(settings.repeat):
            first, later = _generate(model, settings.prompt, settings.new + 1)
            prompts.append(head + (first - head) * grow)
            tokens += [head + (one - head) * grow for one in later]
    figures["prompt"] = _figure(prompts, settings.prompt)
    figures["new"].append({"context": settings.prompt, **_figure(tokens, 1)})
    return {
        "name": "transformers",
        "version": transformers.__version__,
        "dtype": "bfloat16",
        "layers": layers,
        "of_layers": measured.of_layers,
        "same_weights": same,
        "figures": figures,
    }


class _Clock:
    """A streamer for Transformers that records when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt first, then every token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """The answer has ended."""


def _generate(model: Any, prompt: int, new: int) -> tuple[float, list[float]]:
    """Seconds to the first token of a random prompt, and those of each later one."""
    ids = torch.randint(20, model.config.text_config.vocab_size, (1, prompt))
    clock = _Clock()
    settings = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    start = time.perf_counter()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=clock, **settings)
    _, first, *later = clock.times
    times = [first, *later]
    return first - start, [b - a for a, b in zip(times, later, strict=False)]


def _layers_that_fit(measured: MeasuredModel) -> int:
    """All layers, or a few."""
    config = measured.model.config
    text = config.text_config
    assert text.head_dim is not None
    heads = text.num_attention_heads + text.num_key_value_heads
    layer = 4 * text.hidden_size * heads * text.head_dim + 6 * text.hidden_size * text.intermediate_size
    shared = measured.facts["quantization"] is None and measured.facts["layers"] == measured.of_layers
    head = 0 if shared else 2 * text.vocab_size * text.hidden_size
    available = available_memory(torch.device("cpu"))
    if available is None:
        return measured.of_layers
    for layers in (measured.of_layers, min(_FEW_LAYERS, measured.of_layers)):
        need = _SPARE + head + (0 if shared else layers * layer)
        if need <= available:
            return layers
    raise ConfigError(
        f"comparing needs {gigabytes(need)} for {layers} layers in bfloat16 beside the model, but "
        f"{gigabytes(available)} are available; leave --compare out, or use --layers"
    )


def _build(transformers: Any, measured: MeasuredModel, layers: int) -> tuple[Any, bool]:
    """Their model with our weights where those are bfloat16, else random ones; and whether all are ours."""
    values = copy.deepcopy(measured.model.config.to_dict())
    values.pop("quantization_config", None)
    values["text_config"]["num_hidden_layers"] = layers
    config = transformers.LlavaConfig(**values)
    with torch.device("meta"):
        theirs = transformers.LlavaForConditionalGeneration(config)
    theirs = theirs.to(torch.bfloat16).eval().requires_grad_(False)
    ours = measured.model.state_dict()
    state, same = {}, True
    for name, like in theirs.state_dict().items():
        found = ours.get(name)
        if found is None or found.dtype != torch.bfloat16:
            same = False
            width = like[0].numel() if like.dim() > 1 else 1
            found = torch.empty(like.shape, dtype=torch.bfloat16).normal_(std=width**-0.5)
        state[name] = found
    theirs.load_state_dict(state, assign=True)
    _compute_frequencies(theirs)
    theirs.generation_config.eos_token_id = None
    return theirs, same


def _compute_frequencies(model: nn.Module) -> None:
    """Compute the buffers that are in no checkpoint (rotary frequencies), which are still on `meta`."""
    for module in model.modules():
        left = [name for name, one in module.named_buffers(recurse=False) if one.is_meta]
        if left:
            made = type(module)(module.config)
            for name in left:
                setattr(module, name, getattr(made, name))


def _figure(runs: list[float], tokens: int | None = None) -> dict[str, Any]:
    seconds = statistics.median(runs)
    rate = {} if tokens is None else {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 3)}
    return {"seconds": round(seconds, 5), "runs": [round(run, 5) for run in runs], **rate}
