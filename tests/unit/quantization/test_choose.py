"""Which scheme a load uses: arguments that agree, that contradict each other or the checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from pixtral.configuration import BitsAndBytesConfig, QuantizationConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.quantization import Asked, choose_quantizer

STORED = QuantizationConfig(4, quantize_vision=True).to_dict()
INT4 = QuantizationConfig(4)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked("int4"), INT4),
        (Asked("int8", True, "bf16"), QuantizationConfig(8, quantize_vision=True, activations="bf16")),
        (Asked(config=QuantizationConfig(8, group_size=32)), QuantizationConfig(8, group_size=32)),
        (Asked(config=INT4.to_dict()), INT4),
        (Asked("int4", activations="int8", config=INT4), INT4),
        (
            Asked("int4", True, config=QuantizationConfig(quantize_vision=True)),
            QuantizationConfig(quantize_vision=True),
        ),
    ],
)
def test_for_a_checkpoint_in_full_precision(asked: Asked, expected: QuantizationConfig) -> None:
    quantizer = choose_quantizer(asked, None, "there")
    assert quantizer is not None and not quantizer.stored
    assert quantizer.config == expected


def test_nothing_asked_and_nothing_stored() -> None:
    assert choose_quantizer(Asked(), None, "there") is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked("int3"), "quantization is 'int3'; expected 'int4' or 'int8'"),
        (Asked("int8", config=INT4), "quantization='int8' contradicts quantization_config, .*bits=4"),
        (Asked(quantize_vision=True, config=INT4), "quantize_vision=True contradicts quantization_config"),
        (Asked(activations="bf16", config=INT4), "activations='bf16' contradicts quantization_config"),
        (Asked(quantize_vision=True), "found quantize_vision=True, but nothing asks to quantize; add quantization='i"),
        (Asked(activations="int8"), "found activations='int8', but nothing asks to quantize"),
        (Asked("int4", activations="int4"), "activations is 'int4'; expected one of 'int8', 'bf16'"),
        (Asked(config=4), r"quantization_config is a int; expected a pixtral.QuantizationConfig, .*BitsAndBytesConfig"),
        (Asked("int4", config=BitsAndBytesConfig(load_in_4bit=True)), "says bitsandbytes, and quantization='int4'"),
    ],
)
def test_arguments_that_contradict_each_other(asked: Asked, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_quantizer(asked, None, "there")


@pytest.mark.parametrize(
    "asked", [Asked(), Asked("int4"), Asked("int4", True), Asked(quantize_vision=True), Asked(config=dict(STORED))]
)
def test_a_stored_checkpoint_and_what_agrees_with_it(asked: Asked) -> None:
    quantizer = choose_quantizer(asked, STORED, "there")
    assert quantizer is not None and quantizer.stored
    assert quantizer.to_dict() == STORED


def test_how_a_stored_checkpoint_computes_can_be_chosen() -> None:
    for asked in (
        Asked(activations="bf16"),
        Asked(config=QuantizationConfig(quantize_vision=True, activations="bf16")),
    ):
        quantizer = choose_quantizer(asked, STORED, "there")
        assert quantizer is not None and quantizer.stored
        assert quantizer.to_dict() == STORED | {"activations": "bf16"}


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        (Asked("int8"), STORED),
        (Asked("int4", True), INT4.to_dict()),
        (Asked(config=INT4), STORED),
        (Asked(config=QuantizationConfig(4, group_size=32, quantize_vision=True)), STORED),
    ],
)
def test_a_quantized_checkpoint_is_not_quantized_to_something_else(asked: Asked, stored: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"there says the weights are quantized already, as .*bits=4.*, and asked for"
    ):
        choose_quantizer(asked, stored, "there")


def test_what_is_stored_and_not_read() -> None:
    with pytest.raises(ConfigError, match="in version 7 of pixtral's format"):
        choose_quantizer(Asked(), STORED | {"version": 7}, "there")
    with pytest.raises(CheckpointError, match=r"there says the weights are quantized \(awq\)"):
        choose_quantizer(Asked(), {"quant_method": "awq"}, "there")
