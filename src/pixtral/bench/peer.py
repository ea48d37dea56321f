"""Transformers on the same shapes, in the same process: what `pixtral bench --compare transformers` measures."""

from __future__ import annotations

import copy
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixtral.bench.measured_model import Subject
from pixtral.bench.settings import Settings
from pixtral.checkpoints.memory import available_memory, gigabytes
from pixtral.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from collections.abc import Callable

FEW_LAYERS = 4  # of the decoder, where all of them do not fit in bfloat16
_SPARE = 2 << 30  # for its activations and cache


def measure_transformers(subject: Subject, settings: Settings, tell: Callable[[str], None]) -> dict[str, Any]:
    """Image, prompt and new tokens, in bfloat16 and with random weights where the subject's own cannot be used.

    Raises:
        MissingDependency: Transformers is not installed.
        ConfigError: not even a few layers fit.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("--compare transformers needs it: pip install transformers") from error
    layers = _layers_that_fit(subject)
    tell(f"Transformers with {layers} of {subject.of_layers} layers in bfloat16")
    model, same = _build(transformers, subject, layers)
    figures: dict[str, Any] = {"image": [], "new": []}
    with torch.no_grad():
        for side in settings.images:
            pixels = torch.randn(1, 3, side, side, dtype=torch.bfloat16)
            sizes = torch.tensor([[side, side]])
            small = min(side, 64)
            model.get_image_features(pixels[..., :small, :small], image_sizes=torch.tensor([[small, small]]))
            runs = []
            for _ in range(settings.repeat):
                start = time.perf_counter()
                model.get_image_features(pixels, image_sizes=sizes)
                runs.append(time.perf_counter() - start)
            figures["image"].append({"side": side, **_figure(runs)})
        head = _seconds(lambda: model.lm_head(torch.zeros(1, model.lm_head.in_features, dtype=torch.bfloat16)))
        grow = subject.of_layers / layers
        generate(model, 32, 2)
        prompts, tokens = [], []
        for _ in range(settings.repeat):
            first, later = generate(model, settings.prompt, settings.new + 1)
            prompts.append(head + (first - head) * grow)
            tokens += [head + (one - head) * grow for one in later]
    figures["prompt"] = _figure(prompts, settings.prompt)
    figures["new"].append({"context": settings.prompt, **_figure(tokens, 1)})
    return {
        "name": "transformers",
        "version": transformers.__version__,
        "dtype": "bfloat16",
        "layers": layers,
        "of_layers": subject.of_layers,
        "same_weights": same,
        "figures": figures,
    }


class _Clock:
    """A streamer of Transformers that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt first, then every token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def generate(model: Any, prompt: int, new: int) -> tuple[float, list[float]]:
    """Seconds to the first token of a random prompt, and those of each later one."""
    ids = torch.randint(20, model.config.text_config.vocab_size, (1, prompt))
    clock = _Clock()
    settings = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    start = time.perf_counter()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=clock, **settings)
    _, first, *later = clock.times
    times = [first, *later]
    return first - start, [b - a for a, b in zip(times, later, strict=False)]


def _layers_that_fit(subject: Subject) -> int:
    """All of them, or a few."""
    config = subject.model.config
    text = config.text_config
    assert text.head_dim is not None
    heads = text.num_attention_heads + text.num_key_value_heads
    layer = 4 * text.hidden_size * heads * text.head_dim + 6 * text.hidden_size * text.intermediate_size
    shared = subject.facts["quantization"] is None and subject.facts["layers"] == subject.of_layers
    head = 0 if shared else 2 * text.vocab_size * text.hidden_size
    available = available_memory(torch.device("cpu"))
    if available is None:
        return subject.of_layers
    for layers in (subject.of_layers, min(FEW_LAYERS, subject.of_layers)):
        need = _SPARE + head + (0 if shared else layers * layer)
        if need <= available:
            return layers
    raise ConfigError(
        f"comparing needs {gigabytes(need)} for {layers} layers in bfloat16 beside the model, but "
        f"{gigabytes(available)} are available; leave --compare out, or use --layers"
    )


def _build(transformers: Any, subject: Subject, layers: int) -> tuple[Any, bool]:
    """Their model, with every weight of ours that is in bfloat16; and whether that were all of them."""
    values = copy.deepcopy(subject.model.config.to_dict())
    values.pop("quantization_config", None)
    values["text_config"]["num_hidden_layers"] = layers
    config = transformers.LlavaConfig(**values)
    with torch.device("meta"):
        theirs = transformers.LlavaForConditionalGeneration(config)
    theirs = theirs.to(torch.bfloat16).eval().requires_grad_(False)
    ours = subject.model.state_dict()
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
    """Buffers that are in no checkpoint: rotary frequencies, left on `meta` by the construction there."""
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


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
