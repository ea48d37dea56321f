"""How many operations and bytes a phase needs, so that its seconds can be held against the machine's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import nn

from pixtral.bench.ceilings import Ceilings
from pixtral.configuration import MistralConfig
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.packed import PackedLinear


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
        in_int8 = isinstance(module, PackedLinear) and module.activations == "int8"
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
