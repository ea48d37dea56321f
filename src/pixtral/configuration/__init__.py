"""Configurations with Transformers' field names and defaults, read strictly from every published file format."""

from __future__ import annotations

from pixtral.configuration.base import ACTIVATIONS, Config
from pixtral.configuration.generation import GenerationConfig
from pixtral.configuration.network import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.configuration.quantization import BitsAndBytesConfig, QuantizationConfig

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
