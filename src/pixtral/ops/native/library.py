"""The native kernels' library: found, opened once, its functions declared by those who call them."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pixtral.errors import ConfigError

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
_VARIABLE = "PIXTRAL_ISA"


class Kernels:
    """An open library.

    Attributes:
        path: the file.
        isa: the instruction set in use: "portable", "avx2", "avx512" (with VNNI) or "avx512_bf16" (and BF16).
        best_isa: the best one of this CPU.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = ctypes.CDLL(path)
        self.best_isa = ISAS[self.function("px_best_isa", [], ctypes.c_int)()]
        wanted = os.environ.get(_VARIABLE)
        if wanted is not None:
            self._choose(wanted)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return ISAS[self.function("px_isa", [], ctypes.c_int)()]

    def function(self, name: str, argtypes: Sequence[Any], restype: Any = None) -> Callable[..., Any]:
        """A function of the library with its C types declared; declare it once and keep it."""
        found = self._library[name]  # a new object at every call: declarations of two callers do not meet
        found.argtypes = list(argtypes)
        found.restype = restype
        return found

    def _choose(self, wanted: str) -> None:
        if wanted not in ISAS:
            raise ConfigError(f"{_VARIABLE} is {wanted!r}; expected one of {', '.join(ISAS)}, or leave it unset")
        if not self.function("px_set_isa", [ctypes.c_int], ctypes.c_int)(ISAS.index(wanted)):
            raise ConfigError(
                f"{_VARIABLE} is {wanted!r}, but this CPU or build offers {self.best_isa!r} at most; leave it unset"
            )


@functools.cache
def _open() -> Kernels | str:
    """The library, or why there is none."""
    found = importlib.util.find_spec("pixtral.ops.native._kernels")
    if found is None or found.origin is None:
        return "pixtral was installed where no C++ compiler was found"
    try:
        return Kernels(found.origin)
    except OSError as error:
        return f"{found.origin} cannot be opened ({error})"


def kernels_if_built() -> Kernels | None:
    """The library, or None without a word: for what is only a little slower without it."""
    found = _open()
    return None if isinstance(found, str) else found


@functools.cache
def kernels() -> Kernels | None:
    """The library, or None, with one warning, where it was not built or cannot be opened."""
    found = _open()
    if not isinstance(found, str):
        return found
    warnings.warn(
        f"quantized layers run in plain PyTorch, many times slower, because {found}; "
        "install a C++17 compiler and reinstall pixtral (`pixtral doctor` shows what is used)",
        RuntimeWarning,
        stacklevel=2,
    )
    return None
