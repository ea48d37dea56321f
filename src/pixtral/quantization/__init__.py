"""Quantization: linear layers are swapped on `meta` before the weights are read, and filled as they stream."""

from __future__ import annotations

from pixtral.quantization.base import Quantizer, Slot, WeightSource
from pixtral.quantization.choose import QuantizationArguments, choose_quantizer

__all__ = ["QuantizationArguments", "Quantizer", "Slot", "WeightSource", "choose_quantizer"]
