"""int4 and int8: which layers are quantized, into what, and in how much memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from random_models import packable_dict
from torch import nn
from weight_source import TensorSource

from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig, QuantizationConfig
from pixtral.errors import ConfigError
from pixtral.layers.linear import QuantizedLinear
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel
from pixtral.ops.quantized_weight import quantize_weight
from pixtral.quantization import base
from pixtral.quantization.base import Slot
from pixtral.quantization.groupwise import GroupwiseQuantizer

CPU = torch.device("cpu")


def swapped(
    config: QuantizationConfig, values: dict[str, Any] | None = None, *, stored: bool = False, cls: Any = None
) -> tuple[nn.Module, GroupwiseQuantizer, dict[str, nn.Module]]:
    network = LlavaConfig.from_dict(copy.deepcopy(values or packable_dict()))
    part = {MistralForCausalLM: network.text_config, PixtralVisionModel: network.vision_config}.get(cls, network)
    model = build_empty(cls or LlavaForConditionalGeneration, part)  # type: ignore[arg-type]
    quantizer = GroupwiseQuantizer(config, stored=stored)
    return model, quantizer, quantizer.swap(model, torch.bfloat16)


def formats(layers: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    assert all(isinstance(layer, QuantizedLinear) for layer in layers.values())
    return {name: (layer.bits, layer.group_size) for name, layer in layers.items()}  # type: ignore[misc]


@pytest.mark.parametrize(("bits", "head"), [(4, 8), (8, 8), (4, 4), (4, 16)])
def test_the_decoder_and_the_output_layer(bits: int, head: int) -> None:
    model, _, layers = swapped(QuantizationConfig(bits, lm_head_bits=head))
    found = formats(layers)
    expected = {}
    for index in range(3):
        prefix = f"model.language_model.layers.{index}."
        expected |= {f"{prefix}self_attn.{one}_proj": (bits, 64 if one != "o" else 32) for one in "qkvo"}
        expected |= {f"{prefix}mlp.{one}_proj": (bits, 64 if one != "down" else 32) for one in ("gate", "up", "down")}
    if head < 16:
        expected["lm_head"] = (head, 64)
    assert found == expected
    assert all(model.get_submodule(name) is layer for name, layer in layers.items())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    left = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    assert len(left) == 3 * 7 + 2 + (head == 16)
    assert all("vision_tower" in name or "projector" in name or name == "lm_head" for name in left)


def test_with_the_vision_tower_and_the_projector() -> None:
    model, _, layers = swapped(QuantizationConfig(4, quantize_vision=True))
    found = formats(layers)
    vision = {name: bits for name, (bits, _) in found.items() if "language_model" not in name and name != "lm_head"}
    assert len(vision) == 3 * 7 + 2
    assert set(vision.values()) == {8}
    assert not any(isinstance(one, nn.Linear) for one in model.modules())
    projector = model.get_submodule("model.multi_modal_projector.linear_1")
    assert isinstance(projector, QuantizedLinear) and projector.bias is not None
    assert isinstance(model.get_submodule("model.vision_tower.patch_conv"), nn.Conv2d)


def test_the_parts_alone() -> None:
    assert set(formats(swapped(QuantizationConfig(), cls=MistralForCausalLM)[2])) == {
        "lm_head",
        *(
            f"model.layers.{i}.{name}_proj"
            for i in range(3)
            for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
        ),
    }
    tower = QuantizationConfig(quantize_vision=True)
    assert len(swapped(tower, cls=PixtralVisionModel)[2]) == 21
    with pytest.raises(
        ConfigError, match="quantization='int4' is for a decoder, and PixtralVisionModel has none; pass"
    ):
        swapped(QuantizationConfig(), cls=PixtralVisionModel)
    assert swapped(QuantizationConfig(), cls=PixtralVisionModel, stored=True)[2] == {}  # as it is in the checkpoint


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            QuantizationConfig(group_size=128),
            "q_proj has 64 columns, which groups of 128 do not divide; leave group_si",
        ),
        (QuantizationConfig(group_size=64), "o_proj has 96 columns, which groups of 64 do not divide"),
        (
            QuantizationConfig(),
            "q_proj has 40 columns, which groups of 64 or 32 do not divide; leave the model as it is",
        ),
    ],
)
def test_groups_that_do_not_divide_the_width(config: QuantizationConfig, says: str) -> None:
    values = packable_dict(text={"hidden_size": 40}) if config.group_size is None else packable_dict()
    with pytest.raises(ConfigError, match=says):
        swapped(config, values)


def test_what_the_files_have_to_hold() -> None:
    _, quantizer, layers = swapped(QuantizationConfig())
    down = layers["model.language_model.layers.0.mlp.down_proj"]  # 64 x 96
    assert quantizer.slots(down) == {"weight": Slot((64, 96))}
    stored = GroupwiseQuantizer(QuantizationConfig(), stored=True)
    assert stored.slots(down) == {
        "codes": Slot((4, 12, 64), torch.uint8),
        "scales": Slot((4, 3, 16), torch.int8),
        "row_scales": Slot((64,), torch.float32),
    }
    assert set(stored.slots(down)) == set(GroupwiseQuantizer.suffixes)
    assert quantizer.nbytes(down) == 4 * 12 * 64 + 4 * 3 * 16 + 64 * 4
    head = layers["lm_head"]  # 100 x 64: seven tiles of 16 rows
    assert quantizer.nbytes(head) == 7 * 16 * 64 + 7 * 16 + 7 * 16 * 4
    assert (quantizer.describe(down), quantizer.describe(head)) == ("4 bits, groups of 32", "8 bits, groups of 64")


def test_a_weight_is_quantized_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as in one piece, and never more than a block at once."""
    monkeypatch.setattr(base, "BLOCK_BYTES", 3000)
    _, quantizer, layers = swapped(QuantizationConfig())
    layer, weight = layers["lm_head"], torch.randn(100, 64)
    seen: list[int] = []

    class Watched(TensorSource):
        def read(self) -> torch.Tensor:
            raise AssertionError("read as a whole")

        def blocks(self, multiple: int = 1) -> Any:
            for start, rows in super().blocks(multiple):
                seen.append(len(rows))
                yield start, rows

    quantizer.quantize(layer, Watched(weight), CPU)
    assert seen == [16] * 6 + [4]  # 11 rows would be 3000 bytes, and a tile is the least
    expected = quantize_weight(weight, 8, 64)
    assert isinstance(layer, QuantizedLinear)
    for name, value in quantizer.tensors(layer).items():
        assert torch.equal(value, getattr(expected, name)), name


def test_what_may_be_mapped() -> None:
    fresh, stored = GroupwiseQuantizer(QuantizationConfig()), GroupwiseQuantizer(QuantizationConfig(), stored=True)
    embeddings, norm = "model.language_model.embed_tokens.weight", "model.language_model.norm.weight"
    assert [one.maps(name) for one in (fresh, stored) for name in (embeddings, norm)] == [True, False, True, True]
