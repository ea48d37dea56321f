"""Configurations with Transformers' field names and defaults, read strictly from every published file format."""

from __future__ import annotations

from pixtral.configuration.base import Config
from pixtral.configuration.bitsandbytes import BitsAndBytesConfig
from pixtral.configuration.checks import ACTIVATIONS
from pixtral.configuration.generation import GenerationConfig
from pixtral.configuration.network import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.configuration.quantization import QuantizationConfig

__all__ = [
    "ACTIVATIONS",
    "BitsAndBytesConfig",
    "Config",
    "GenerationConfig",
    "LlavaConfig",
    "MistralConfig",
    "PixtralVisionConfig",
    "QuantizationConfig",
]
