"""Random weights and random contexts: measuring without a checkpoint, and without reading long prompts.

The speed does not depend on the values. A random model is the public model class, its layers swapped by the same
quantizer as in a load; only the numbers are drawn instead of read, scaled such that activations stay of order one
through any number of layers. Every layer has memory of its own: shared weights would stay in the processor's caches.
The token embeddings are in an unnamed temporary file that is mapped into memory, so that only the rows that prompts
use are resident, as with a quantized checkpoint.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile

import torch
from torch import Tensor, nn

from pixtral.bench.work import weight_bytes
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig, MistralConfig
from pixtral.engine.model import PackedModel
from pixtral.errors import ConfigError
from pixtral.layers.file_embedding import FileEmbedding
from pixtral.layers.linear import QuantizedLinear
from pixtral.models import LlavaForConditionalGeneration
from pixtral.ops.kv_cache import KVCache, Packing
from pixtral.ops.quantized_weight import LEVELS4
from pixtral.ops.runtime import empty_huge
from pixtral.quantization import QuantizationArguments, choose_quantizer

_BLOCK = 1 << 22  # numbers that are drawn at a time for the embeddings
_SCALES = (64, 127)  # 8-bit scales of groups are drawn between these, with either sign


def empty_model(config: LlavaConfig, asked: QuantizationArguments) -> LlavaForConditionalGeneration:
    """The network without memory (on `meta`), in bfloat16, its layers swapped as `asked`.

    Raises:
        ConfigError: an unknown quantization.
    """
    quantizer = choose_quantizer(asked, None, "the shape")
    model = build_empty(LlavaForConditionalGeneration, config).to(torch.bfloat16)
    if quantizer is not None:
        quantizer.swap(model, torch.bfloat16)
    config.dtype = config.text_config.dtype = config.vision_config.dtype = "bfloat16"
    config.quantization_config = None if quantizer is None else quantizer.to_dict()
    model.quantizer = quantizer
    return model.eval().requires_grad_(False)


def resident_bytes(model: LlavaForConditionalGeneration) -> int:
    """Memory of the weights without the embeddings, of which only single rows are read."""
    embeddings = model.decoder.embed_tokens.weight
    tied = model.lm_head.weight is embeddings if isinstance(model.lm_head, nn.Linear) else False
    return weight_bytes(model) - (0 if tied else embeddings.nbytes)


def fill_random(model: LlavaForConditionalGeneration, seed: int = 0) -> None:
    """Give every tensor of a model on `meta` memory and random numbers.

    Raises:
        ConfigError: no room on the disk for the token embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = model.decoder.embed_tokens
    tied = isinstance(model.lm_head, nn.Linear) and model.lm_head.weight is embeddings.weight
    model.decoder.embed_tokens = _in_file(embeddings, generator)
    if tied:
        model.lm_head.weight = model.decoder.embed_tokens.weight
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            _fill_packed(module, generator)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(_plain(name, parameter, generator), requires_grad=False))
    left = [name for name, one in (*model.named_parameters(), *model.named_buffers()) if one.is_meta]
    assert not left, f"left without a value: {left}"


class FilledContext:
    """A model for the generation loop that runs only the last tokens of its one prompt.

    The keys and values of the tokens before them are random; the last tokens and every later step run on a cache that
    is as full as after reading the whole prompt.
    """

    def __init__(self, model: PackedModel, context: int, computed: int = 1) -> None:
        """
        Args:
            model: to run.
            context: tokens of the prompt.
            computed: tokens at its end that are run, at least one.
        """
        self.model = model
        self.drawn = max(context - max(computed, 1), 0)

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        return self.model.text_config

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, embeddings and cache."""
        return self.model.dtype

    def embed(self, input_ids: Tensor) -> Tensor:
        """(N,) int64 -> (N, C)."""
        return self.model.embed(input_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, C) -> (R, V)."""
        return self.model.logits(hidden)

    def forward_packed(
        self, embeds: Tensor, positions: Tensor, packing: Packing, cache: KVCache | None, wanted: Tensor | None
    ) -> Tensor:
        """(N, C) -> (R, C), the rows `wanted`, in their order; those that are not run come back as they are."""
        assert cache is not None and len(packing.q_lens) == 1, "made for one sequence with a cache"
        assert packing.slots is not None
        computed = packing.kv_lens[0] - len(embeds)
        drawn = min(max(self.drawn - computed, 0), len(embeds))
        if drawn == 0:
            return self.model.forward_packed(embeds, positions, packing, cache, wanted)
        _draw(cache, packing.slots[:drawn])
        if wanted is None:
            wanted = torch.arange(len(embeds), device=embeds.device)
        if drawn == len(embeds):
            return embeds[wanted]
        run = wanted[wanted >= drawn] - drawn
        rest = dataclasses.replace(packing, q_lens=(len(embeds) - drawn,), slots=packing.slots[drawn:])
        hidden = self.model.forward_packed(embeds[drawn:], positions[drawn:], rest, cache, run)
        return torch.cat([embeds[wanted[wanted < drawn]], hidden])


def _plain(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Ones for norms, zeros for biases, else normal values that keep the scale of activations."""
    if like.dim() == 1:
        return torch.full(like.shape, 0.0 if name == "bias" else 1.0, dtype=like.dtype)
    width = like[0].numel()
    return torch.empty(like.shape, dtype=like.dtype).normal_(std=width**-0.5, generator=generator)


def _fill_packed(layer: QuantizedLinear, generator: torch.Generator) -> None:
    """Random codes and scales; the scale of the rows makes outputs of order one from inputs of order one."""
    codes = empty_huge(layer.codes.shape, torch.uint8)  # as in a load
    codes.view(torch.int64).random_(-(2**63), None, generator=generator)
    low, high = _SCALES
    scales = torch.randint(low, high + 1, layer.scales.shape, dtype=torch.int8, generator=generator)
    if layer.bits == 8:
        codes.clamp_min_(1)  # code 0 is unused
        levels = torch.arange(1, 256) - 128.0
    else:
        scales *= torch.randint(0, 2, scales.shape, dtype=torch.int8, generator=generator) * 2 - 1
        levels = torch.tensor(LEVELS4, dtype=torch.float32)
    size = levels.square().mean().sqrt() * scales.float().square().mean().sqrt() * layer.in_features**0.5
    layer.codes, layer.scales = codes, scales
    layer.row_scales = torch.full(layer.row_scales.shape, 1 / float(size))


def _in_file(embeddings: nn.Embedding, generator: torch.Generator) -> nn.Embedding:
    """Random bfloat16 embeddings in an unnamed temporary file, which is freed with them."""
    count = embeddings.weight.numel()
    try:
        with tempfile.TemporaryFile() as file:
            for start in range(0, count, _BLOCK):
                block = torch.empty(min(_BLOCK, count - start), dtype=torch.bfloat16).normal_(generator=generator)
                file.write(block.view(torch.uint8).numpy().data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            table = torch.frombuffer(mapped, dtype=torch.bfloat16).view(embeddings.weight.shape)
            embeddings.weight = nn.Parameter(table, requires_grad=False)
            return FileEmbedding.over(embeddings, file.fileno(), 0) if hasattr(os, "preadv") else embeddings
    except OSError as error:
        raise ConfigError(
            f"cannot write the token embeddings ({2 * count / 1e9:.1f} GB) to {tempfile.gettempdir()}: {error}; "
            "make room there, or set TMPDIR to a folder that has it"
        ) from error


def _draw(cache: KVCache, slots: Tensor) -> None:
    """Write random keys and values to these slots, the same ones in every layer."""
    like = cache.layers[0].keys
    dtype = like.dtype if like.dtype.is_floating_point else torch.float32
    keys, values = (torch.randn(len(slots), *like.shape[1:]).to(like.device, dtype) for _ in range(2))
    for layer in cache.layers:
        layer.write(slots, keys, values)
