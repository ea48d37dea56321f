"""What programs ask of a model that may be quantized, under Transformers' names."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from pixtral.errors import ConfigError
from pixtral.quantization.base import Quantizer
from pixtral.quantization.bitsandbytes import BitsAndBytesQuantizer

T = TypeVar("T", bound="QuantizedModel")


class QuantizedModel(nn.Module):
    """A model with a `quantizer`, or None."""

    quantizer: Quantizer | None = None

    @property
    def quantization_config(self) -> object:
        """How the weights are quantized: a QuantizationConfig, a BitsAndBytesConfig, or None."""
        return None if self.quantizer is None else self.quantizer.config

    @property
    def is_quantized(self) -> bool:
        """Whether layers hold fewer bits."""
        return self.quantizer is not None

    @property
    def quantization_method(self) -> str | None:
        """The `quant_method` of config.json: "bitsandbytes", "pixtral", or None."""
        return None if self.quantizer is None else self.quantizer.method

    @property
    def hf_quantizer(self) -> BitsAndBytesQuantizer | None:
        """What peft and trainers ask about a model that bitsandbytes quantized."""
        return self.quantizer if isinstance(self.quantizer, BitsAndBytesQuantizer) else None

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether bitsandbytes holds the weights in 8 bits."""
        return self.hf_quantizer is not None and self.hf_quantizer.config.load_in_8bit

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether bitsandbytes holds the weights in 4 bits."""
        return self.hf_quantizer is not None and self.hf_quantizer.config.load_in_4bit

    def to(self: T, *args: Any, **kwargs: Any) -> T:
        """As of nn.Module.

        Raises:
            ConfigError: a dtype, for a model that bitsandbytes quantized.
        """
        if torch._C._nn._parse_to(*args, **kwargs)[1] is not None:
            self._refuse_cast("to(dtype)")
        return super().to(*args, **kwargs)

    def half(self: T) -> T:
        """As of nn.Module, and refused like `to(dtype)`."""
        self._refuse_cast("half()")
        return super().half()

    def float(self: T) -> T:
        """As of nn.Module, and refused like `to(dtype)`."""
        self._refuse_cast("float()")
        return super().float()

    def _refuse_cast(self, call: str) -> None:
        if self.hf_quantizer is not None:
            raise ConfigError(
                f"{call} would change what a model quantized by bitsandbytes computes in; pass dtype to from_pretrained"
            )
