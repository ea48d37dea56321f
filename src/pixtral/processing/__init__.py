"""Text and images to what the model takes: PixtralProcessor, AutoProcessor, AutoTokenizer."""

from __future__ import annotations

from pixtral.processing.auto import AutoTokenizer
from pixtral.processing.processor import AutoProcessor, ModalData, PixtralProcessor

__all__ = ["AutoProcessor", "AutoTokenizer", "ModalData", "PixtralProcessor"]
