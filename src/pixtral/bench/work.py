"""How many operations and bytes a phase needs, so that its seconds can be held against the machine's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pixtral.bench.ceilings import Ceilings
from pixtral.configuration import MistralConfig
from pixtral.engine.model import PackedModel
from pixtral.models.linear import QuantizedLinear
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.ops.kv_cache import KVCache, Packing


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done.

    Attributes:
        int8: operations on 8-bit integers, two for each multiply-add.
        bf16: operations on anything else.
        bytes: that have to be read from memory at least once.
    """

    int8: float = 0.0
    bf16: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.int8 + other.int8, self.bf16 + other.bf16, self.bytes + other.bytes)

    @property
    def operations(self) -> float:
        """Of both kinds."""
        return self.int8 + self.bf16

    def least_seconds(self, ceilings: Ceilings) -> float:
        """That a machine with these ceilings needs: for computing or for reading, whichever is longer."""
        return max(self.int8 / ceilings.int8 + self.bf16 / ceilings.bf16, self.bytes / ceilings.read)


def linear_work(modules: Iterable[nn.Module], rows: int) -> Work:
    """Of the linear layers among modules, on `rows` rows."""
    total = Work()
    for module in modules:
        width, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if not isinstance(width, int) or not isinstance(out, int):
            continue
        operations = 2.0 * rows * width * out
        in_int8 = isinstance(module, QuantizedLinear) and module.activations == "int8"
        total += Work(
            operations if in_int8 else 0.0, 0.0 if in_int8 else operations, sum(map(_nbytes, _tensors(module)))
        )
    return total


def decoder_work(model: LlavaForConditionalGeneration, rows: int, keys: int, cache_bytes: int) -> Work:
    """Of `rows` tokens of one sequence, the last of which sees `keys` keys, for the logits of the last one.

    Args:
        cache_bytes: that a token takes in the cache, in all layers.
    """
    text = model.text_config
    assert text.head_dim is not None
    seen = rows * (keys - (rows - 1) / 2)  # keys of all rows together
    attention = 4.0 * seen * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    once = {id(module) for module in _for_wanted_rows(model)}
    work = linear_work((module for module in model.decoder.modules() if id(module) not in once), rows)
    work += linear_work([*_for_wanted_rows(model), model.lm_head], 1)
    return work + Work(bf16=attention, bytes=float(keys * cache_bytes))


def _for_wanted_rows(model: LlavaForConditionalGeneration) -> list[nn.Module]:
    """Of the last layer, what is computed only for rows whose logits are wanted."""
    last: Any = model.decoder.layers[-1]
    return [last.self_attn.o_proj, *last.mlp.modules()]


def idle_share(model: LlavaForConditionalGeneration) -> float:
    """Which part of the last layer's linear work is left out for rows whose logits are not wanted."""
    idle = linear_work(_for_wanted_rows(model), 1).operations
    return idle / linear_work(model.decoder.layers[-1].modules(), 1).operations


def image_work(model: LlavaForConditionalGeneration, patches: int) -> Work:
    """Of one image of that many patches through tower and projector."""
    vision = model.config.vision_config
    pixels = vision.num_channels * vision.patch_size**2
    attention = 4.0 * patches * patches * vision.hidden_size * vision.num_hidden_layers
    conv = 2.0 * patches * pixels * vision.hidden_size
    parts = [*model.model.vision_tower.modules(), *model.model.multi_modal_projector.modules()]
    return linear_work(parts, patches) + Work(bf16=attention + conv)


def cache_bytes(text: MistralConfig, kv_cache: str | None, itemsize: int = 2) -> int:
    """Of one token's keys and values in all layers.

    Args:
        kv_cache: "bf16", "int8" or None for the model's own format.
        itemsize: of the model's numbers.
    """
    assert text.head_dim is not None
    per_head = text.head_dim + 4 if kv_cache == "int8" else text.head_dim * itemsize  # int8: and a float, the scale
    return 2 * text.num_hidden_layers * text.num_key_value_heads * per_head


def weight_bytes(module: nn.Module) -> int:
    """Of all its parameters and buffers, tied ones once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(map(_nbytes, tensors.values()))


def _tensors(module: nn.Module) -> list[Any]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


# FOLDED pixtral.bench.work: A long context without the minutes of reading it: keys and values of the first tokens are drawn, not computed.


class FilledContext:
    """A model for the generation loop, of whose one prompt only the last tokens are run.

    The keys and values of the others are random; what comes after them, and every later step, is the model's own work
    on a cache that is as long and as full as after reading the whole prompt. (The speed does not depend on the values.)
    """

    def __init__(self, model: PackedModel, context: int, computed: int = 1) -> None:
        """
        Args:
            model: does the rest.
            context: tokens of the prompt.
            computed: of them, those at the end that are run, at least one.
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


def _draw(cache: KVCache, slots: Tensor) -> None:
    """Random keys and values for these slots; drawn once, since layers differ only in where they lie."""
    like = cache.layers[0].keys
    dtype = like.dtype if like.dtype.is_floating_point else torch.float32
    keys, values = (torch.randn(len(slots), *like.shape[1:]).to(like.device, dtype) for _ in range(2))
    for layer in cache.layers:
        layer.write(slots, keys, values)
