"""The model of an estimate: a folder, a Hub id of which only small files are fetched, or a named shape."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pixtral.checkpoints.config import LLAVA, narrow, read_raw, stored_quantization, whole_config
from pixtral.checkpoints.layout import Files, Layout, find, weight_names
from pixtral.checkpoints.opening import Opened, open_checkpoint
from pixtral.checkpoints.placement import parse_dtype
from pixtral.configuration import LlavaConfig
from pixtral.configuration.shapes import shape_config
from pixtral.errors import CheckpointError, ConfigError, PromptError
from pixtral.hub import read_json, resolve
from pixtral.images.base import BaseImageProcessor
from pixtral.images.options import read_image_config
from pixtral.images.processors import NativeImageProcessor, PixtralImageProcessor
from pixtral.models import NETWORKS
from pixtral.processing.auto import choose_layout
from pixtral.quantization import QuantizationArguments, Quantizer, choose_quantizer

_CONFIGS = {"hf": "config.json", "mistral": "params.json"}
_SMALL = (*_CONFIGS.values(), "*.safetensors.index.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class DescribedModel:
    """A model that is not loaded, described by its configuration and the headers of its files.

    Attributes:
        name: folder, Hub id or shape.
        config: of the network.
        dtype: of the tensors that are not quantized.
        quantizer: None when no layer is quantized.
        disk: bytes of its weight files; None when they are unknown.
        mapped: whether the embeddings are stored in `dtype`, so that a quantized model maps them from the file.
        images: image processor that counts patches.
    """

    name: str
    config: LlavaConfig
    dtype: torch.dtype
    quantizer: Quantizer | None
    disk: int | None
    mapped: bool
    images: BaseImageProcessor


def describe_shape(shape: str, asked: QuantizationArguments, dtype: torch.dtype | None) -> DescribedModel:
    """A shape that is known by name; no files are read.

    Raises:
        ConfigError: there is no such shape, or no such quantization.
    """
    config = shape_config(shape)
    quantizer = choose_quantizer(asked, None, shape)
    used = dtype or torch.bfloat16
    return DescribedModel(
        shape, config, used, quantizer, None, used is torch.bfloat16, _processor(config, "mistral", {})
    )


def describe_checkpoint(
    path_or_id: str | os.PathLike[str],
    asked: QuantizationArguments,
    dtype: torch.dtype | None,
    layout: Layout,
    **hub: Any,
) -> DescribedModel:
    """A folder with weights or with a configuration alone, or a Hub id. Of weights only the headers are read.

    Raises:
        CheckpointError: no files, or broken ones.
        ConfigError: a configuration that cannot be used, or not that of a whole Pixtral.
    """
    folder = resolve(path_or_id, patterns=_SMALL, **hub)
    name = os.fspath(path_or_id)
    kinds = [kind for kind in (_CONFIGS if layout == "auto" else (layout,)) if (folder / _CONFIGS[kind]).is_file()]
    weighty = [kind for kind in kinds if any(one.endswith(".safetensors") for one in weight_names(folder, kind))]
    if weighty and (Path(path_or_id).expanduser().is_dir() or _complete(folder, layout)):
        return _opened(name, folder, open_checkpoint(find(folder, layout), NETWORKS, dtype=dtype, asked=asked), layout)
    if not kinds:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise CheckpointError(
            f"{folder} has no {' or '.join(_CONFIGS.values())}, which an estimate is made from; found {found}"
        )
    files = Files(folder, kinds[0], folder / _CONFIGS[kinds[0]], ())
    raw = read_raw(files)
    config = _whole(narrow(whole_config(files, raw, {}), LLAVA, files.config), name)
    quantizer = choose_quantizer(asked, stored_quantization(files, raw), files.config)
    stored = parse_dtype(raw.get("dtype") or raw.get("torch_dtype")) or torch.bfloat16
    used = dtype or stored
    disk = _promised_bytes(folder, kinds[0])
    return DescribedModel(
        name, config, used, quantizer, disk, used == stored, _images(folder, config, kinds[0], layout)
    )


def _complete(folder: Path, layout: Layout) -> bool:
    """Whether all weights are in the Hub's cache."""
    try:
        find(folder, layout)
    except CheckpointError:
        return False
    return True


def _opened(name: str, folder: Path, opened: Opened, layout: Layout) -> DescribedModel:
    config = _whole(opened.config, name)
    embeddings = next((i for n, i in opened.plan.sources.items() if n.endswith("embed_tokens.weight")), None)
    disk = sum(file.stat().st_size for file in opened.contents.files.weights)
    mapped = embeddings is not None and embeddings.dtype == opened.dtype
    images = _images(folder, config, opened.contents.files.layout, layout)
    return DescribedModel(name, config, opened.dtype, opened.quantizer, disk, mapped, images)


def _whole(config: object, name: str) -> LlavaConfig:
    if not isinstance(config, LlavaConfig):
        raise ConfigError(f"{name} describes a {type(config).__name__}, expected a whole Pixtral (a LlavaConfig)")
    return config


def _promised_bytes(folder: Path, kind: str) -> int | None:
    """The size of the weights by the shard index."""
    for name in weight_names(folder, kind):
        if name.endswith(".json"):
            size = read_json(folder / name).get("metadata", {}).get("total_size")
            return int(size) if isinstance(size, int) else None
    return None


def _images(folder: Path, config: LlavaConfig, layout: str, asked: Layout) -> BaseImageProcessor:
    """The image processor that loading the folder would choose."""
    with contextlib.suppress(PromptError):  # without a tokenizer the weights' layout decides
        layout = choose_layout(folder, asked)
    try:
        options = read_image_config(folder)
    except CheckpointError:  # no options: the tower's own size
        options = {}
    return _processor(config, layout, options)


def _processor(config: LlavaConfig, layout: str, options: Mapping[str, Any]) -> BaseImageProcessor:
    tower = config.vision_config
    size = options.get("size") or {"longest_edge": tower.image_size}
    patch = options.get("patch_size") or tower.patch_size
    kind = NativeImageProcessor if layout == "mistral" else PixtralImageProcessor
    return kind(size=size, patch_size=patch)
