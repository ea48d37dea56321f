"""Linear layers on bfloat16 weights by the native kernels, whose result for a row does not depend on the other rows.

Where the CPU has no instruction for bfloat16 they multiply float32. PyTorch is slower at one row and at many
(docs/performance.md), sums one row in another order than several, compiles and caches a primitive for every number of
rows, and its threads keep spinning after a product, which slows down the other threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixtral.ops.native.library import kernels_if_built


def runs_dense(x: Tensor, *weights: Tensor) -> bool:
    """Whether the kernels take this product: bfloat16 on a CPU that multiplies it, without gradients or tracing."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack():
        return False
    if x.dim() != 2 or x.shape[1] % 2 or type(x) is not Tensor:
        return False
    if any(t.dtype is not torch.bfloat16 or not t.is_cpu for t in (x, *weights)):
        return False
    if any(not weight.is_contiguous() or weight.shape[1:] != x.shape[1:] for weight in weights):
        return False
    functions = _functions()
    return functions is not None and bool(functions[0]())


def dense_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """x (M, K) bfloat16 -> one (M, N_i) for each (N_i, K) weight; sums in float32, rounded once. See `runs_dense`."""
    outs = [torch.empty((len(x), len(weight)), dtype=x.dtype) for weight in weights]
    _call(x, weights, biases, outs, gated=False)
    return outs


def dense_gated_linear(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(x gate^T) * (x up^T), (M, N); rounded once."""
    assert gate.shape == up.shape
    out = torch.empty((len(x), len(gate)), dtype=x.dtype)
    _call(x, (gate, up), (None, None), (out, out), gated=True)
    return out


def _call(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], outs: Sequence[Tensor], *, gated: bool
) -> None:
    functions = _functions()
    assert functions is not None
    if x.stride(1) != 1:
        x = x.contiguous()
    numbers = [x.data_ptr(), *x.shape, x.stride(0), torch.get_num_threads(), gated, len(weights)]
    kept = []  # keeps copied biases alive until the call has ended
    for weight, bias, out in zip(weights, biases, outs, strict=True):
        if bias is not None:
            assert bias.dtype == x.dtype and bias.shape == (len(weight),)
            bias = bias.contiguous()
            kept.append(bias)
        numbers += (weight.data_ptr(), 0 if bias is None else bias.data_ptr(), len(weight), out.data_ptr())
    if not functions[1]((ctypes.c_int64 * len(numbers))(*numbers)):
        raise MemoryError(f"no memory to pack {len(x)} x {x.shape[1]} activations; use fewer rows at a time")


@functools.cache
def _functions() -> tuple[Callable[[], int], Callable[..., int]] | None:
    library = kernels_if_built()
    if library is None:
        return None
    can = library.function("px_can_dense", [], ctypes.c_int)
    return can, library.function("px_dense", [ctypes.c_void_p], ctypes.c_int)
