"""The kernels of another instruction set for a while."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest

from pixtral.ops.native.library import ISAS, kernels_if_built


@contextlib.contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Kernels for this instruction set; the test is skipped where the CPU or the build has none."""
    library = kernels_if_built()
    if library is None:
        pytest.skip("the kernels are not built")
    before, choose = library.isa, library.function("px_set_isa", [ctypes.c_int], ctypes.c_int)
    if not choose(ISAS.index(name)):
        pytest.skip(f"no {name} here")
    try:
        yield
    finally:
        choose(ISAS.index(before))
