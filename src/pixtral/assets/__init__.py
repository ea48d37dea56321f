"""Where the files that ship with the package are: the embedded model and the image of the demonstration."""

from __future__ import annotations

import pathlib


def tiny_path() -> pathlib.Path:
    """Folder of the embedded model: a small trained Pixtral in both layouts (see docs/tiny-model.md)."""
    return pathlib.Path(__file__).parent / "tiny"


def demo_image_path() -> pathlib.Path:
    """The demonstration's image, drawn by the generator that drew the training images, not one of them."""
    return pathlib.Path(__file__).parent / "demo.png"
