"""A web server on loopback for the tests of whole programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from image_server import serving


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Its address; /dog.png is 100 x 150 pixels, /mountain.png 128 x 90."""
    with serving() as address:
        yield address
