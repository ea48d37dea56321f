"""estimate(): tokens of images, memory by part and room on the disk of a model, before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from pixtral.assets import tiny_path
from pixtral.checkpoints.layout import Layout
from pixtral.checkpoints.memory import available_memory
from pixtral.checkpoints.placement import parse_dtype
from pixtral.configuration import QuantizationConfig
from pixtral.configuration.quantization import BitsAndBytesConfig
from pixtral.engine.model import cache_dtype
from pixtral.engine.request import context_length
from pixtral.errors import ConfigError
from pixtral.images.limits import ImageLimits
from pixtral.images.source import ImageSource, load_image
from pixtral.ops.kv_cache import token_bytes
from pixtral.quantization import QuantizationArguments
from pixtral.sizing.described_model import DescribedModel, describe_checkpoint, describe_shape
from pixtral.sizing.memory import loading_bytes, part_sizes, work_space
from pixtral.sizing.result import ImageSize, MemoryEstimate

_DEFAULT_CONTEXT = 4096
# Measured: memory of a process without a model, and of a tokenizer for each entry of its vocabulary.
_RUNTIME = 250_000_000
_TOKENIZER_ENTRY = 1150

_BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "llm.int8": {"load_in_8bit": True},
}


def estimate(
    path_or_id: str | os.PathLike[str] | None = None,
    *,
    shape: str | None = None,
    images: Sequence[ImageSource | tuple[int, int]] = (),
    quantization: str | None = None,
    quantize_vision: bool = False,
    quantization_config: QuantizationConfig | BitsAndBytesConfig | dict[str, Any] | None = None,
    kv_cache: str | None = None,
    context: int | None = None,
    batch: int = 1,
    dtype: str | torch.dtype | None = "auto",
    max_image_size: int | None = None,
    layout: Layout = "auto",
    limits: ImageLimits | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> MemoryEstimate:
    """Estimate the tokens of images, the memory by part on a CPU, and the room on the disk of a model.

    Nothing is loaded: configuration and headers are enough. Of a Hub id only small files are fetched.

    Args:
        path_or_id: a folder (a configuration in it is enough) or a Hub id; the embedded model when left out.
        shape: instead, "pixtral-12b" or "pixtral-large", which need no files.
        images: of a conversation, as `load` takes them, or their (width, height) in pixels.
        quantization: "int4" or "int8"; "nf4", "fp4" and "llm.int8" are bitsandbytes'.
        quantize_vision, quantization_config: as of `from_pretrained`.
        kv_cache: "bf16", "int8", or None for the model's dtype.
        context: tokens, prompt and answer together; 4,096 when left out, or more if the images need more.
        batch: conversations at a time.
        dtype: of what is not quantized; "auto" for the checkpoint's.
        max_image_size: longest side to which images are scaled down; the model's own when left out.
        layout: which files, of a folder that holds both layouts.
        limits: on the images that are read.
        revision, token, cache_dir, local_files_only: for the Hub.

    Raises:
        CheckpointError: no files, or broken ones.
        ConfigError: a configuration or argument that cannot be used.
        GenerationError: an unknown kind of cache.
        ImageError: an image that cannot be fetched or read.
    """
    if shape is not None and path_or_id is not None:
        raise ConfigError(f"found a model ({os.fspath(path_or_id)}) and a shape ({shape}); give one of them")
    asked, wanted = _asked(quantization, quantize_vision, quantization_config), parse_dtype(dtype)
    for name, number in (("context", context), ("batch", batch)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ConfigError(f"{name} is {number!r}; expected a number from 1")
    if shape is not None:
        described = describe_shape(shape, asked, wanted)
    else:
        hub: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub["local_files_only"] = local_files_only
        described = describe_checkpoint(tiny_path() if path_or_id is None else path_or_id, asked, wanted, layout, **hub)
    sizes = _image_sizes(described, images, max_image_size, limits or ImageLimits())
    return _estimate(described, sizes, context, batch, kv_cache)


def _estimate(
    described: DescribedModel, images: tuple[ImageSize, ...], context: int | None, batch: int, kv_cache: str | None
) -> MemoryEstimate:
    text = described.config.text_config
    length = context_length(text)
    image_tokens = sum(image.tokens for image in images)
    context = min(max(_DEFAULT_CONTEXT, image_tokens + _DEFAULT_CONTEXT // 4), length) if context is None else context
    if context > length:
        raise ConfigError(f"context is {context}, but the model holds at most {length} tokens")
    weights = part_sizes(described)
    kind = cache_dtype(kv_cache, described.dtype)
    work = work_space(described, [(i.resized_height, i.resized_width) for i in images], context, batch, kind)
    saved = sum(part.nbytes for part in weights)
    disk = described.disk
    if disk is None:  # of a checkpoint in the model's dtype, unless the configuration is that of a quantized one
        stored = described.quantizer is None or described.quantizer.stored
        disk = saved if stored else sum(part.parameters for part in weights) * described.dtype.itemsize
    return MemoryEstimate(
        model=described.name,
        dtype=str(described.dtype).removeprefix("torch."),
        quantization=_quantization_name(described),
        kv_cache=str(kind).removeprefix("torch."),
        weights=weights,
        images=images,
        context=context,
        context_length=length,
        batch=batch,
        cache=batch * context * token_bytes(text, kind),
        image_work=work.images,
        prompt_work=work.prompt,
        runtime=_RUNTIME + _TOKENIZER_ENTRY * text.vocab_size,
        loading=loading_bytes(described),
        disk=disk,
        saved=saved,
        available=available_memory(torch.device("cpu")),
    )


def _asked(quantization: str | None, quantize_vision: bool, config: object) -> QuantizationArguments:
    """The arguments for the loader; bitsandbytes' names become its configurations."""
    if quantization in _BITSANDBYTES:
        if config is not None or quantize_vision:
            raise ConfigError(f"quantization={quantization!r} is bitsandbytes' and says it all; leave the others out")
        return QuantizationArguments(config=BitsAndBytesConfig(**_BITSANDBYTES[quantization]))
    return QuantizationArguments(quantization, quantize_vision, None, config)


def _quantization_name(described: DescribedModel) -> str | None:
    config = None if described.quantizer is None else described.quantizer.config
    if isinstance(config, QuantizationConfig):
        return config.name
    if isinstance(config, BitsAndBytesConfig):
        return "llm.int8" if config.load_in_8bit else config.bnb_4bit_quant_type
    return None


def _image_sizes(
    described: DescribedModel,
    images: Sequence[ImageSource | tuple[int, int]],
    max_image_size: int | None,
    limits: ImageLimits,
) -> tuple[ImageSize, ...]:
    options: Any = {} if max_image_size is None else {"size": {"longest_edge": max_image_size}}
    patch = described.config.vision_config.patch_size
    found = []
    for image in images:
        if isinstance(image, tuple):
            name, (width, height) = "", image
        else:
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
            width, height = load_image(image, limits=limits).size
        grid = described.images.grid_of(width, height, **options)
        resized = grid.size(patch)
        found.append(ImageSize(name, width, height, resized[1], resized[0], grid.rows, grid.cols, grid.num_tokens))
    return tuple(found)
