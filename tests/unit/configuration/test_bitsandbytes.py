"""BitsAndBytesConfig on its own; beside Transformers' it stands in tests/parity/test_bitsandbytes.py."""

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
from pixtral.configuration.quantization import asks_for_bitsandbytes
from pixtral.errors import ConfigError, UnknownArgument


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
