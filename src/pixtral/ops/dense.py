"""Narrow linear layers with bfloat16 weights on a CPU: a row has the same bits alone and among others.

PyTorch's own product sums one row in another order than several, makes code anew for every number of rows (0.7 ms for
each shape of weight), and runs on threads that wait actively for each other, which where anything else wants a core
means: for milliseconds.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pixtral.ops.native.library import kernels_if_built

_P, _N = ctypes.c_void_p, ctypes.c_int64


def takes(layer: nn.Module, x: Tensor) -> bool:
    """Whether `dense` can do a plain layer's work on x (N, K)."""
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return takes_weight(layer.weight, x)


def takes_weight(weight: Tensor, x: Tensor) -> bool:
    """Whether `dense` can multiply x (N, K): plain bfloat16 on a CPU with instructions for it, without gradients."""
    if type(x) is not Tensor or x.dtype is not torch.bfloat16 or not x.is_cpu or x.dim() != 2:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    return (
        weight.dtype is torch.bfloat16
        and weight.is_cpu
        and weight.is_contiguous()
        and not weight.shape[1] % 2
        and weight.shape[1] <= _max_columns()
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()  # tensors without values, or somebody traces
    )


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, K) -> (N, M), for what `takes` says can be done."""
    function = _function()
    assert function is not None and x.shape[1] == weight.shape[1], (x.shape, weight.shape)
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    out = x.new_empty(len(x), len(weight))
    at = None if bias is None else bias.data_ptr()
    threads = torch.get_num_threads()
    function(x.data_ptr(), x.stride(0), weight.data_ptr(), at, out.data_ptr(), len(x), *weight.shape, threads)
    return out


@functools.cache
def _function() -> Callable[..., None] | None:
    library = kernels_if_built()
    if library is None:
        return None
    return library.function("px_dense", [_P, _N, _P, _P, _P, _N, _N, _N, ctypes.c_int])


@functools.cache
def _max_columns() -> int:
    library = kernels_if_built()
    return 0 if library is None else int(library.function("px_dense_max_k", [], _N)())
