"""A picture in the terminal: every character cell shows two pixels, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from PIL.Image import Image


def half_blocks(image: Image, *, max_width: int = 48, max_height: int = 20) -> Text:
    """The picture scaled to fit into max_width columns and max_height lines."""
    scale = min(max_width / image.width, 2 * max_height / image.height)
    width = max(1, round(image.width * scale))
    height = max(2, round(image.height * scale / 2) * 2)
    small = image.convert("RGB").resize((width, height))
    data = small.tobytes()
    text = Text(no_wrap=True)
    for top in range(0, height, 2):
        for x in range(width):
            upper, lower = 3 * (top * width + x), 3 * ((top + 1) * width + x)
            style = Style(
                color=Color.from_rgb(*data[upper : upper + 3]), bgcolor=Color.from_rgb(*data[lower : lower + 3])
            )
            text.append("▀", style)
        text.append("\n")
    return text
