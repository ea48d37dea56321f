"""The quantizer of a load, from the caller's arguments and the checkpoint's configuration, which must agree."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixtral.configuration.quantization import BitsAndBytesConfig, QuantizationConfig, asks_for_bitsandbytes
from pixtral.errors import CheckpointError, ConfigError
from pixtral.quantization.base import Quantizer
from pixtral.quantization.bitsandbytes import BitsAndBytesQuantizer
from pixtral.quantization.groupwise import GroupwiseQuantizer


@dataclass(frozen=True)
class QuantizationArguments:
    """The quantization arguments of `from_pretrained` and `load`.

    Args:
        quantization: "int4", "int8" or None.
        quantize_vision: also the tower and the projector.
        activations: "int8", "bf16", or None for the configuration's.
        config: a QuantizationConfig or BitsAndBytesConfig, the `to_dict()` of one, or None.
    """

    quantization: str | None = None
    quantize_vision: bool = False
    activations: str | None = None
    config: object = None


def choose_quantizer(asked: QuantizationArguments, stored: Mapping[str, Any] | None, where: object) -> Quantizer | None:
    """The quantizer of a load; None for full precision.

    Args:
        asked: by the caller.
        stored: `quantization_config` of the checkpoint, or None.
        where: the checkpoint, for messages.

    Raises:
        ConfigError: arguments that contradict each other, or what the checkpoint holds.
        CheckpointError: the checkpoint is quantized in a way that is not read.
    """
    config = None if asked.config is None else _parsed(asked.config)
    if isinstance(config, BitsAndBytesConfig) or asks_for_bitsandbytes(stored or {}):
        return _bitsandbytes(asked, config, stored, where)
    _check_agreement(asked, config)
    if stored is None:
        return _fresh(asked, config)
    method = stored.get("quant_method")
    if method == QuantizationConfig.method:
        return _stored_groupwise(asked, config, QuantizationConfig.from_dict(dict(stored)), where)
    raise CheckpointError(
        f"{where} says the weights are quantized ({method}); of quantized checkpoints those of pixtral and "
        "bitsandbytes are read: use the checkpoint in bfloat16"
    )


def _parsed(config: object) -> QuantizationConfig | BitsAndBytesConfig:
    """A configuration object from itself or its dict."""
    if isinstance(config, dict) and asks_for_bitsandbytes(config):
        return BitsAndBytesConfig.from_dict(config)
    if isinstance(config, dict):
        return QuantizationConfig.from_dict(config)
    if isinstance(config, (QuantizationConfig, BitsAndBytesConfig)):
        return config
    found = f"{type(config).__module__}.{type(config).__name__}".removeprefix("builtins.")
    raise ConfigError(
        f"quantization_config is a {found}; expected a pixtral.QuantizationConfig, a pixtral.BitsAndBytesConfig, "
        "or the dict of one"
    )


def _check_agreement(asked: QuantizationArguments, config: QuantizationConfig | None) -> None:
    """Refuse arguments that contradict the configuration object."""
    if asked.quantization is not None:
        QuantizationConfig.from_name(asked.quantization)  # refuses other names
    given: dict[str, object] = {"quantization": asked.quantization, "activations": asked.activations}
    given["quantize_vision"] = asked.quantize_vision or None
    for name, value in given.items():
        found = getattr(config, "name" if name == "quantization" else name, None)
        if config is not None and value is not None and found != value:
            raise ConfigError(f"{name}={value!r} contradicts quantization_config, {config!r}; give one of them")


def _fresh(asked: QuantizationArguments, config: QuantizationConfig | None) -> Quantizer | None:
    """For a checkpoint in full precision."""
    if config is not None:
        return GroupwiseQuantizer(config)
    if asked.quantization is not None:
        values = {} if asked.activations is None else {"activations": asked.activations}
        made = QuantizationConfig.from_name(asked.quantization, quantize_vision=asked.quantize_vision, **values)
        return GroupwiseQuantizer(made)
    alone = [f"{name}={value!r}" for name, value in vars(asked).items() if value not in (None, False)]
    if alone:
        raise ConfigError(f"found {' and '.join(alone)}, but nothing asks to quantize; add quantization='int4'")
    return None


def _stored_groupwise(
    asked: QuantizationArguments, config: QuantizationConfig | None, found: QuantizationConfig, where: object
) -> Quantizer:
    """For a checkpoint in pixtral's format: only `activations` may differ from what is stored."""
    wanted = config or found
    if config is None:
        wanted = dataclasses.replace(
            found,
            bits=found.bits if asked.quantization is None else QuantizationConfig.from_name(asked.quantization).bits,
            quantize_vision=found.quantize_vision or asked.quantize_vision,
            activations=asked.activations or found.activations,
        )
    if dataclasses.replace(wanted, activations=found.activations) != found:
        raise ConfigError(
            f"{where} says the weights are quantized already, as {found!r}, and asked for is {wanted!r}; "
            "load it without these arguments, or quantize the original checkpoint"
        )
    return GroupwiseQuantizer(wanted, stored=True)


def _bitsandbytes(
    asked: QuantizationArguments,
    config: QuantizationConfig | BitsAndBytesConfig | None,
    stored: Mapping[str, Any] | None,
    where: object,
) -> Quantizer:
    """If the caller or the checkpoint asks for bitsandbytes; the checkpoint takes precedence, as in Transformers."""
    other = [f"{name}={value!r}" for name, value in vars(asked).items() if name != "config" and value]
    if isinstance(config, QuantizationConfig):
        other.append(f"quantization_config={config!r}")
    if other:
        who = "quantization_config" if isinstance(config, BitsAndBytesConfig) else where
        raise ConfigError(f"{who} says bitsandbytes, and {' and '.join(other)} another way to quantize; choose one")
    if stored is None:
        assert isinstance(config, BitsAndBytesConfig)
        return BitsAndBytesQuantizer(config)
    if not asks_for_bitsandbytes(stored):
        raise ConfigError(
            f"{where} says the weights are quantized already, by {stored.get('quant_method')!r}, and "
            "quantization_config asks for bitsandbytes; leave that out, or use the original checkpoint"
        )
    found = BitsAndBytesConfig.from_dict(stored)
    if config is not None and config != found:
        warnings.warn(
            f"{where} says how its weights were quantized, and the quantization_config that was passed says it "
            f"differently; the checkpoint's is used: {found.to_json_string().strip()}",
            stacklevel=2,
        )
    return BitsAndBytesQuantizer(found, stored=True)
