"""The measured ceilings of this machine: reading memory, products of 8-bit integers and of bfloat16."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pixtral.ops.native.library import kernels

READ_BYTES = 256 << 20  # many times the last cache of a processor's core complex
PASSES = 5
_ROUNDS = 2_000_000  # of the products: about ten milliseconds
_SIDES = (128, 2048)  # of the matrices that PyTorch multiplies
_PATIENCE = 0.5  # seconds for one product; without instructions for bfloat16 PyTorch needs a minute for the larger one


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates per second.

    Attributes:
        read: bytes of memory.
        int8: operations on 8-bit integers, two for each multiply-add.
        bf16: the same on bfloat16.
        measured_with: the instruction set of the kernels that measured, or "torch".
    """

    read: float
    int8: float
    bf16: float
    measured_with: str

    def to_dict(self) -> dict[str, Any]:
        """In a report, in GB/s and TOP/s."""
        return {
            "read_gb_s": round(self.read / 1e9, 1),
            "int8_top_s": round(self.int8 / 1e12, 3),
            "bf16_top_s": round(self.bf16 / 1e12, 3),
            "measured_with": self.measured_with,
        }


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Meter:
    """Measures the ceilings; holds READ_BYTES of memory."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # numpy requests huge pages, which are read faster; torch.ones does not
        self._buffer = np.ones(READ_BYTES, np.uint8)
        self._words = torch.from_numpy(self._buffer.view(np.int64))
        self._library = kernels()
        self._read: Callable[..., float] | None = None
        if self._library is not None:
            types = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
            self._read = self._library.function("px_measure_read", types, ctypes.c_double)

    def read(self) -> float:
        """Bytes per second of one pass over the buffer, some milliseconds."""
        if self._read is not None:
            return READ_BYTES / self._read(self.threads, self._buffer.ctypes.data, READ_BYTES)
        return READ_BYTES / seconds_of(self._words.sum)

    def ceilings(self) -> Ceilings:
        """Ceilings: reading as the median of several passes, since it varies on a shared machine; products the best."""
        read = statistics.median(self.read() for _ in range(PASSES))
        bf16 = max(_torch_rate(torch.mm, torch.bfloat16), self._rate("px_measure_bf16"))
        int8 = self._rate("px_measure_int8") or _torch_rate(torch._int_mm, torch.int8)
        return Ceilings(read, int8, bf16, "torch" if self._library is None else self._library.isa)

    def _rate(self, name: str) -> float:
        """Operations per second of a native loop; 0 without the library, or where the CPU has no such products."""
        if self._library is None:
            return 0.0
        function = self._library.function(name, (ctypes.c_int, ctypes.c_int64), ctypes.c_double)
        return max(float(function(self.threads, _ROUNDS)) for _ in range(PASSES))


def _torch_rate(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], dtype: torch.dtype) -> float:
    """Operations per second of PyTorch's own product of two square matrices; of small ones where it is slow."""
    rate = 0.0
    for side in _SIDES:
        if rate and 2 * side**3 / rate > _PATIENCE:
            break
        a = torch.ones(side, side, dtype=dtype)
        product(a, a)
        for _ in range(PASSES):
            rate = max(rate, 2 * side**3 / seconds_of(functools.partial(product, a, a)))
    return rate
