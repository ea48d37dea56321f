"""QuantizationConfig and BitsAndBytesConfig: strict fields, dtypes, the way to config.json and back, versions."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pixtral
from pixtral import BitsAndBytesConfig
from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig, QuantizationConfig
from pixtral.configuration.quantization import asks_for_bitsandbytes
from pixtral.errors import ConfigError, UnknownArgument


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
        "quant_method": "pixtral",
        "version": 2,
        "bits": 8,
        "group_size": 32,
        "lm_head_bits": 16,
        "quantize_vision": True,
        "activations": "bf16",
    }
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


def test_the_class_itself_needs_no_torch() -> None:
    code = (
        "import sys, pixtral; pixtral.BitsAndBytesConfig; print('torch' in sys.modules, 'bitsandbytes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
    assert pixtral.BitsAndBytesConfig is BitsAndBytesConfig


def test_dtypes_by_name_and_as_they_are() -> None:
    config = BitsAndBytesConfig(bnb_4bit_compute_dtype="bfloat16", bnb_4bit_quant_storage=torch.float16)
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert config.bnb_4bit_quant_storage is torch.float16
    config.bnb_4bit_compute_dtype = "float16"  # type: ignore[assignment]  # a name is taken here too
    assert config.bnb_4bit_compute_dtype is torch.float16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bnb_4bit_quant_type", "nf5"),
        ("bnb_4bit_quant_type", None),
        ("bnb_4bit_compute_dtype", torch.int8),
        ("bnb_4bit_compute_dtype", "half precision"),
        ("bnb_4bit_quant_storage", torch.bool),
        ("llm_int8_skip_modules", "lm_head"),
        ("llm_int8_skip_modules", [1]),
        ("llm_int8_skip_modules", ["lm_head", "model.(layers"]),
        ("llm_int8_threshold", True),
        ("load_in_4bit", "yes"),
    ],
)
def test_wrong_values_are_refused_with_their_name_whenever_they_are_set(field: str, value: Any) -> None:
    for spoil in (
        lambda: BitsAndBytesConfig(**{field: value}),
        lambda: setattr(BitsAndBytesConfig(), field, value),
        lambda: BitsAndBytesConfig().update(**{field: value}),
        lambda: BitsAndBytesConfig.from_dict({field: value}),
    ):
        with pytest.raises(ConfigError, match=f"BitsAndBytesConfig.{field} is .*expected"):
            spoil()


def test_four_and_eight_bits_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="choose one"):
        BitsAndBytesConfig(load_in_4bit=True, load_in_8bit=True)
    config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ConfigError, match="choose one"):
        config.load_in_4bit = True
    config.load_in_8bit = False
    config.load_in_4bit = True
    assert config.quantization_method() == "fp4"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownArgument, match="'load_in_4bits'; did you mean 'load_in_4bit'"):
        BitsAndBytesConfig(load_in_4bits=True)
    with pytest.raises(ConfigError, match="'bnb_quant_type'"):
        BitsAndBytesConfig.from_dict({"bnb_quant_type": "nf4"})
    with pytest.raises(UnknownArgument, match="'bits'"):
        BitsAndBytesConfig().bits = 4  # type: ignore[attr-defined]
    assert BitsAndBytesConfig().update(load_in_8bit=True, bits=4) == {"bits": 4}


def test_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="quant_method 'gptq'; BitsAndBytesConfig reads 'bitsandbytes'"):
        BitsAndBytesConfig.from_dict({"quant_method": "gptq"})


def test_there_and_back(tmp_path: Path) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="float16",
        llm_int8_skip_modules=["lm_head"],
    )
    assert BitsAndBytesConfig.from_dict(config.to_dict()) == config
    assert BitsAndBytesConfig.from_dict(json.loads(config.to_json_string())) == config  # what is missing is default
    config.to_json_file(tmp_path / "q.json")
    assert BitsAndBytesConfig.from_dict(json.loads((tmp_path / "q.json").read_text())) == config
    other = copy.deepcopy(config)
    assert other == config
    assert other.llm_int8_skip_modules is not None
    other.llm_int8_skip_modules.append("o_proj")
    assert other != config
    assert dict(config) == config.to_dict()
    assert "nf4" in repr(config)


def test_what_belongs_to_bitsandbytes() -> None:
    assert asks_for_bitsandbytes(BitsAndBytesConfig().to_dict())
    assert asks_for_bitsandbytes({"load_in_8bit": True})  # files of 2023 do not name the method
    assert not asks_for_bitsandbytes({"quant_method": "gptq"})
    assert not asks_for_bitsandbytes({})
