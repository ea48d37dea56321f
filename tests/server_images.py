"""What tests of the server send: the packaged image as a data: URI, and a question about it."""

from __future__ import annotations

import base64
from typing import Any

from pixtral.assets import demo_image_path

IMAGE = "data:image/png;base64," + base64.b64encode(demo_image_path().read_bytes()).decode()


def asking(text: str = "Describe the picture.", url: str = IMAGE) -> list[dict[str, Any]]:
    """A conversation of one message."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]
