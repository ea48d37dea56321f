"""QuantizationConfig: strict fields, the way to config.json and back, versions."""

from __future__ import annotations

import json
from typing import Any

import pytest

import pixtral
from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig, QuantizationConfig
from pixtral.errors import ConfigError


def test_names_and_defaults() -> None:
    config = QuantizationConfig.from_name("int4")
    assert config == QuantizationConfig() == pixtral.QuantizationConfig(4, None, 8, False, "int8")
    assert (config.name, QuantizationConfig.from_name("int8", quantize_vision=True).name) == ("int4", "int8")


@pytest.mark.parametrize("name", ["int3", "INT4", "4", "nf4", "", 4])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"quantization is .*; expected 'int4' or 'int8', or None .*bitsandbytes"):
        QuantizationConfig.from_name(name)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("bits", 3, "bits is 3; expected one of 4, 8"),
        ("bits", "4", "bits is '4', expected an integer"),
        ("group_size", 48, "group_size is 48; expected one of None, 32, 64, 128"),
        ("group_size", 0, "group_size is 0; expected one of"),
        ("lm_head_bits", 5, "lm_head_bits is 5; expected one of 4, 8, 16"),
        ("quantize_vision", 1, "quantize_vision is 1, expected true or false"),
        ("activations", "fp8", "activations is 'fp8'; expected one of 'int8', 'bf16'"),
    ],
)
def test_values_are_checked(field: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        QuantizationConfig(**{field: value})
    with pytest.raises(ConfigError, match=says):
        QuantizationConfig.from_dict({field: value})


def test_to_json_and_back() -> None:
    config = QuantizationConfig(8, 32, 16, True, "bf16")
    values = json.loads(json.dumps(config.to_dict()))
    assert values == {
        "quant_method": "pixtral", "version": 2, "bits": 8, "group_size": 32, "lm_head_bits": 16,
        "quantize_vision": True, "activations": "bf16",
    }  # fmt: skip
    assert QuantizationConfig.from_dict(values) == config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"version": 3},
            r"in version 3 of pixtral's format; this release reads version 2: upgrade pixtral, or quantize",
        ),
        ({"version": 1}, r"in version 1 of pixtral's format; this release reads version 2: quantize the original"),
        ({"version": 0}, "version is 0; expected an integer from 1"),
        ({"version": "1"}, "version is '1'; expected an integer"),
        ({"version": True}, "version is True; expected an integer"),
        ({"quant_method": "gptq"}, "found quant_method 'gptq'; QuantizationConfig reads 'pixtral'"),
        ({"groupsize": 64}, "does not know the field 'groupsize' .did you mean 'group_size'"),
    ],
)
def test_what_is_not_read(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        QuantizationConfig.from_dict(QuantizationConfig().to_dict() | change)


def test_not_an_object() -> None:
    with pytest.raises(ConfigError, match="needs a JSON object, found list"):
        QuantizationConfig.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [LlavaConfig, MistralConfig, PixtralVisionConfig])
def test_a_network_carries_it_only_when_it_is_quantized(cls: Any) -> None:
    """Transformers takes a model for quantized when the name is there, be it null."""
    assert "quantization_config" not in cls().to_dict()
    values = cls().to_dict() | {"quantization_config": QuantizationConfig().to_dict()}
    assert cls.from_dict(values).to_dict()["quantization_config"] == QuantizationConfig().to_dict()
