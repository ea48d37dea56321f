"""The embedded model in float32, loaded once."""

from __future__ import annotations

import pytest
from PIL import Image

import pixtral
from pixtral.assets import demo_image_path


@pytest.fixture(scope="session")
def assistant():
    return pixtral.load(dtype="float32", device_map="cpu", progress=False)


@pytest.fixture
def image():
    return Image.open(demo_image_path()).convert("RGB")
