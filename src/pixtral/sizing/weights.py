"""Memory for weights, part by part, from the network on `meta`."""

from __future__ import annotations

from torch import nn

from pixtral.checkpoints import names
from pixtral.checkpoints.empty import build_empty
from pixtral.checkpoints.fitting import tensor_sizes
from pixtral.checkpoints.plan import Wanted, wanted_by
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.sizing.result import PartSize
from pixtral.sizing.subject import Subject

EMBEDDINGS = "embed_tokens.weight"
_TITLES = {
    names.VISION: "vision tower",
    names.PROJECTOR: "projector",
    "embeddings": "embeddings",
    names.TEXT: "decoder",
    names.HEAD: "output layer",
}


def part_sizes(subject: Subject) -> tuple[PartSize, ...]:
    """The parts of the model, in the order in which they compute."""
    model, wanted = swapped(subject)
    formats: dict[str, dict[str, None]] = {part: {} for part in _TITLES}
    counts, sizes = dict.fromkeys(_TITLES, 0), dict.fromkeys(_TITLES, 0)
    plain = str(subject.dtype).removeprefix("torch.")
    for name, size in tensor_sizes(model, wanted, subject.dtype, subject.quantizer).items():
        layer = wanted.layers.get(name)
        part = "embeddings" if name.endswith(EMBEDDINGS) else names.part_of(name)
        sizes[part] += size
        if layer is None:
            counts[part] += model.get_parameter(name).numel()
            formats[part].setdefault(plain)
        else:
            assert subject.quantizer is not None
            counts[part] += weights_of(layer)
            formats[part].setdefault(subject.quantizer.describe(layer))
    in_file = subject.mapped and subject.quantizer is not None and subject.quantizer.maps(EMBEDDINGS)
    return tuple(
        PartSize(
            title,
            counts[part],
            ", ".join(sorted(formats[part], key=lambda words: words == plain)),
            sizes[part],
            0 if part == "embeddings" and in_file else sizes[part],
        )
        for part, title in _TITLES.items()
        if counts[part]
    )


def swapped(subject: Subject, model: nn.Module | None = None) -> tuple[nn.Module, Wanted]:
    """The network on `meta` with its layers swapped, and what it needs."""
    model = model or build_empty(LlavaForConditionalGeneration, subject.config)
    return model, wanted_by(model, subject.dtype, subject.quantizer)


def weights_of(layer: nn.Module) -> int:
    """How many weights a quantized layer stands for."""
    rows, columns = layer.out_features, layer.in_features
    assert isinstance(rows, int) and isinstance(columns, int)
    return rows * columns
