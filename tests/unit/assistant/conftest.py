"""The embedded model in float32, loaded once."""

from __future__ import annotations

import pytest
from PIL import Image

import pixtral
from pixtral.assets import demo_picture_path


@pytest.fixture(scope="session")
def assistant():
    return pixtral.load(dtype="float32", device_map="cpu", progress=False)


@pytest.fixture
def picture():
    return Image.open(demo_picture_path()).convert("RGB")
