"""Opening a checkpoint: configuration, quantization, the model on `meta` and the plan, from headers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pixtral.checkpoints import names
from pixtral.checkpoints.config import (
    KINDS,
    Kind,
    Networks,
    kind_of,
    narrow,
    read_raw,
    settle_head_dim,
    stored_quantization,
    whole_config,
)
from pixtral.checkpoints.layout import Files
from pixtral.checkpoints.placement import COMPUTE_DTYPES, parse_dtype
from pixtral.checkpoints.plan import Contents, Plan, announce, make_plan, read_contents, wanted_by
from pixtral.configuration import Config, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.quantization import QuantizationArguments, Quantizer, choose_quantizer

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose headers were read.

    Args:
        kind: of network.
        contents: its tensors.
        config: of the network that is built.
        model: on `meta`, its layers swapped by the quantizer.
        quantizer: None when no layer is quantized.
        dtype: of what is not.
        plan: which tensor fills what; it may have problems, see `plan.refuse`.
        heads: parameter -> heads, for those whose rows lie in Mistral's rotary order.
    """

    kind: Kind
    contents: Contents
    config: Config
    model: nn.Module
    quantizer: Quantizer | None
    dtype: torch.dtype
    plan: Plan
    heads: Mapping[str, int]


def open_checkpoint(
    files: Files,
    network: type[nn.Module] | Networks,
    *,
    config: Config | None = None,
    dtype: torch.dtype | None = None,
    asked: QuantizationArguments | None = None,
    offloaded: tuple[str, ...] = (),
) -> Opened:
    """Everything a load decides before it reads tensors; reads headers only.

    Args:
        files: where it is.
        network: the model class to build; or a class for each architecture, of which that of the files is built.
        config: used instead of the checkpoint's own; copied.
        dtype: to compute in; None for the configuration's, else that of most weights.
        asked: quantization arguments; the checkpoint's configuration if left out.
        offloaded: modules that the caller puts on the CPU or the disk by name.

    Raises:
        CheckpointError: broken files, another network, or a quantization that is not read.
        ConfigError: a configuration that cannot be used, or contradicts what is asked.
    """
    kind = kind_of(network) if isinstance(network, type) else None
    raw = read_raw(files)
    quantizer = choose_quantizer(asked or QuantizationArguments(), stored_quantization(files, raw), files.config)
    contents = read_contents(files, quantizer.suffixes if quantizer is not None and quantizer.stored else ())
    if config is None:
        config = whole_config(files, raw, contents.tensors)
        kind = kind or next(one for one in KINDS if isinstance(config, one.config))
        config = narrow(config, kind, files.config)
    else:
        kind = kind or next(one for one in KINDS if isinstance(config, one.config))
        config = narrow(copy.deepcopy(config), kind, "config=")
        settle_head_dim(config, contents.tensors)
    dtype = dtype or _stored_dtype(raw, kind, contents)
    model = build_empty(network if isinstance(network, type) else network[kind.architecture], config)
    if quantizer is not None:
        quantizer.offloaded = offloaded
    announce(quantizer, kind, contents)
    plan = make_plan(wanted_by(model, dtype, quantizer), kind, contents)
    quantizer = quantizer if plan.wanted.layers else None  # the part that is read has no quantized layers
    return Opened(kind, contents, config, model, quantizer, dtype, plan, _interleaved(kind, plan, contents, config))


def build_empty(cls: type[M], config: Config) -> M:
    """`cls(config)` with every parameter on `meta`: shapes and dtypes, no values."""
    with torch.device("meta"), _SkipInit():
        return cls(config)


def head_counts(config: Config) -> tuple[int, int, int]:
    """Heads of the tower, query heads and key heads of the decoder; 0 for a part that there is not."""
    vision = config.vision_config if isinstance(config, LlavaConfig) else config
    text = config.text_config if isinstance(config, LlavaConfig) else config
    tower = vision.num_attention_heads if isinstance(vision, PixtralVisionConfig) else 0
    if isinstance(text, MistralConfig):
        return tower, text.num_attention_heads, text.num_key_value_heads
    return tower, 0, 0


def _stored_dtype(raw: Mapping[str, Any], kind: Kind, contents: Contents) -> torch.dtype:
    """What "auto" means: the configuration's dtype, else the one that most stored bytes of this network have."""
    named = raw.get("dtype") or raw.get("torch_dtype")
    if named is not None and named != "auto":
        found = parse_dtype(named)
        assert found is not None
        return found
    sizes: dict[torch.dtype, int] = {}
    for name, info in contents.tensors.items():
        if kind.own.spell(name) is not None:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default=torch.bfloat16)
    return most if most in COMPUTE_DTYPES else torch.bfloat16  # stored in 8 bits: nothing computes in that


def _interleaved(kind: Kind, plan: Plan, contents: Contents, config: Config) -> dict[str, int]:
    """Parameter -> heads, for those whose rows lie in Mistral's rotary order."""
    if not contents.scheme.native:
        return {}
    counts = head_counts(config)
    found = {name: names.rotary_heads(kind.own.canonical(name) or name, *counts) for name in plan.sources}
    return {name: heads for name, heads in found.items() if heads is not None}


class _SkipInit(TorchFunctionMode):
    """Skips torch.nn.init: on `meta` it computes nothing, but takes a second to import PyTorch's compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
