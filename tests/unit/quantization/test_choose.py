"""Which scheme a load uses: arguments that agree, that contradict each other or the checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from pixtral.configuration import BitsAndBytesConfig, QuantizationConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.quantization import QuantizationArguments, choose_quantizer

STORED = QuantizationConfig(4, quantize_vision=True).to_dict()
INT4 = QuantizationConfig(4)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (QuantizationArguments("int4"), INT4),
        (QuantizationArguments("int8", True, "bf16"), QuantizationConfig(8, quantize_vision=True, activations="bf16")),
        (QuantizationArguments(config=QuantizationConfig(8, group_size=32)), QuantizationConfig(8, group_size=32)),
        (QuantizationArguments(config=INT4.to_dict()), INT4),
        (QuantizationArguments("int4", activations="int8", config=INT4), INT4),
        (
            QuantizationArguments("int4", True, config=QuantizationConfig(quantize_vision=True)),
            QuantizationConfig(quantize_vision=True),
        ),
    ],
)
def test_for_a_checkpoint_in_full_precision(asked: QuantizationArguments, expected: QuantizationConfig) -> None:
    quantizer = choose_quantizer(asked, None, "there")
    assert quantizer is not None and not quantizer.stored
    assert quantizer.config == expected


def test_nothing_asked_and_nothing_stored() -> None:
    assert choose_quantizer(QuantizationArguments(), None, "there") is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (QuantizationArguments("int3"), "quantization is 'int3'; expected 'int4' or 'int8'"),
        (QuantizationArguments("int8", config=INT4), "quantization='int8' contradicts quantization_config, .*bits=4"),
        (
            QuantizationArguments(quantize_vision=True, config=INT4),
            "quantize_vision=True contradicts quantization_config",
        ),
        (QuantizationArguments(activations="bf16", config=INT4), "activations='bf16' contradicts quantization_config"),
        (
            QuantizationArguments(quantize_vision=True),
            "found quantize_vision=True, but nothing asks to quantize; add quantization='i",
        ),
        (QuantizationArguments(activations="int8"), "found activations='int8', but nothing asks to quantize"),
        (QuantizationArguments("int4", activations="int4"), "activations is 'int4'; expected one of 'int8', 'bf16'"),
        (
            QuantizationArguments(config=4),
            r"quantization_config is a int; expected a pixtral.QuantizationConfig, .*BitsAndBytesConfig",
        ),
        (
            QuantizationArguments("int4", config=BitsAndBytesConfig(load_in_4bit=True)),
            "says bitsandbytes, and quantization='int4'",
        ),
    ],
)
def test_arguments_that_contradict_each_other(asked: QuantizationArguments, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_quantizer(asked, None, "there")


@pytest.mark.parametrize(
    "asked",
    [
        QuantizationArguments(),
        QuantizationArguments("int4"),
        QuantizationArguments("int4", True),
        QuantizationArguments(quantize_vision=True),
        QuantizationArguments(config=dict(STORED)),
    ],
)
def test_a_stored_checkpoint_and_what_agrees_with_it(asked: QuantizationArguments) -> None:
    quantizer = choose_quantizer(asked, STORED, "there")
    assert quantizer is not None and quantizer.stored
    assert quantizer.to_dict() == STORED


def test_how_a_stored_checkpoint_computes_can_be_chosen() -> None:
    for asked in (
        QuantizationArguments(activations="bf16"),
        QuantizationArguments(config=QuantizationConfig(quantize_vision=True, activations="bf16")),
    ):
        quantizer = choose_quantizer(asked, STORED, "there")
        assert quantizer is not None and quantizer.stored
        assert quantizer.to_dict() == STORED | {"activations": "bf16"}


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        (QuantizationArguments("int8"), STORED),
        (QuantizationArguments("int4", True), INT4.to_dict()),
        (QuantizationArguments(config=INT4), STORED),
        (QuantizationArguments(config=QuantizationConfig(4, group_size=32, quantize_vision=True)), STORED),
    ],
)
def test_a_quantized_checkpoint_is_not_quantized_to_something_else(
    asked: QuantizationArguments, stored: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"there says the weights are quantized already, as .*bits=4.*, and asked for"
    ):
        choose_quantizer(asked, stored, "there")


def test_what_is_stored_and_not_read() -> None:
    with pytest.raises(ConfigError, match="in version 7 of pixtral's format"):
        choose_quantizer(QuantizationArguments(), STORED | {"version": 7}, "there")
    with pytest.raises(CheckpointError, match=r"there says the weights are quantized \(awq\)"):
        choose_quantizer(QuantizationArguments(), {"quant_method": "awq"}, "there")
