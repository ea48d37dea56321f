"""Attention by the native kernels: prompts, parts of prompts, new tokens and images, with a cache or without.

The kernel reads keys and values once for all query heads and rows of a task; long contexts of few rows are divided
among the threads and their partial softmaxes merged. A row's result does not depend on how the work is divided.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pixtral.ops.kv_cache import LayerCache, Packing
from pixtral.ops.native.library import kernels_if_built

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_MAX_DIM = 256


class _Call(ctypes.Structure):
    """AttendCall of native/attend.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "new_k", "new_v", "out", "keys", "values")),
        *((name, ctypes.c_void_p) for name in ("key_scales", "value_scales", "layout", "slots", "table")),
        *((name, ctypes.c_int64) for name in ("q_stride", "new_k_stride", "new_v_stride", "key_stride")),
        *((name, ctypes.c_int64) for name in ("value_stride", "rows", "sequences")),
        *((name, ctypes.c_int32) for name in ("heads", "key_heads", "dim", "type", "stored", "causal", "rotate")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


def attends_natively(q: Tensor, k: Tensor, v: Tensor, packing: Packing, cache: LayerCache | None) -> bool:
    """Whether the kernels take this call: on the CPU, float32 or bfloat16, head_dim a multiple of 16, no gradients."""
    if not q.is_cpu or q.dtype not in (torch.float32, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        return False
    if q.shape[-1] % 16 or q.shape[-1] > _MAX_DIM or torch.compiler.is_compiling():
        return False
    if type(q) is not Tensor or torch._C._len_torch_dispatch_stack():  # fake tensors, or tracing
        return False
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return False
    if cache is not None and (not cache.keys.is_cpu or cache.keys.dtype not in (q.dtype, torch.int8)):
        return False
    functions = _functions()
    return functions is not None and bool(functions[0]())


def native_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, cache: LayerCache | None) -> Tensor:
    """`attention` by the native kernels; arguments and result as there."""
    functions = _functions()
    assert functions is not None
    rows, heads, dim = q.shape
    out = torch.empty((rows, heads, dim), dtype=q.dtype)
    if rows == 0:
        return out
    q, k, v = _heads_together(q), _heads_together(k), _heads_together(v)
    call = _Call()
    call.q, call.out, call.q_stride = q.data_ptr(), out.data_ptr(), q.stride(0)
    call.rows, call.sequences = rows, len(packing.q_lens)
    call.heads, call.key_heads, call.dim = heads, k.shape[1], dim
    call.type = call.stored = _TYPES[q.dtype]
    call.causal, call.scale, call.threads = packing.causal, dim**-0.5, torch.get_num_threads()
    table = None
    if cache is None:
        starts = [sum(packing.q_lens[:i]) for i in range(len(packing.q_lens))]
        call.keys, call.key_stride = k.data_ptr(), k.stride(0)
        call.values, call.value_stride = v.data_ptr(), v.stride(0)
    else:
        starts, table = packing.places
        _point_at(call, cache)
        call.new_k, call.new_k_stride = k.data_ptr(), k.stride(0)
        call.new_v, call.new_v_stride = v.data_ptr(), v.stride(0)
        assert packing.slots is not None and packing.slots.is_contiguous() and packing.slots.dtype == torch.int64
        call.slots = packing.slots.data_ptr()
        call.table = None if table is None else table.data_ptr()
    numbers = (*packing.q_lens, *packing.kv_lens, *starts)
    layout = (ctypes.c_int64 * len(numbers))(*numbers)
    call.layout = ctypes.addressof(layout)
    functions[1](ctypes.byref(call))
    return out


def _point_at(call: _Call, cache: LayerCache) -> None:
    keys, values = cache.keys, cache.values
    assert keys.is_contiguous() and values.is_contiguous()
    call.keys, call.key_stride = keys.data_ptr(), keys.stride(0)
    call.values, call.value_stride = values.data_ptr(), values.stride(0)
    call.stored, call.rotate = _TYPES[keys.dtype], cache.rotated
    if cache.key_scales is not None and cache.value_scales is not None:
        call.key_scales, call.value_scales = cache.key_scales.data_ptr(), cache.value_scales.data_ptr()


def _heads_together(x: Tensor) -> Tensor:
    """x with the heads of a row side by side; rows may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


@functools.cache
def _functions() -> tuple[Callable[[], int], Callable[..., None]] | None:
    library = kernels_if_built()
    if library is None:
        return None
    can = library.function("px_can_attend", [], ctypes.c_int)
    return can, library.function("px_attend", [ctypes.POINTER(_Call)])
