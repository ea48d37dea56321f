"""Quantization: linear layers are swapped on `meta` before the weights are read, and filled as they stream."""

from __future__ import annotations

from pixtral.quantization.base import Quantizer, Slot, WeightSource
from pixtral.quantization.choose import Asked, choose_quantizer

__all__ = ["Asked", "Quantizer", "Slot", "WeightSource", "choose_quantizer"]
