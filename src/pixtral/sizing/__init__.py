"""Estimates before a model is loaded: tokens of images, memory by part, room on the disk."""

from pixtral.sizing.estimating import estimate
from pixtral.sizing.result import ImageSize, MemoryEstimate, PartSize

__all__ = ["ImageSize", "MemoryEstimate", "PartSize", "estimate"]
