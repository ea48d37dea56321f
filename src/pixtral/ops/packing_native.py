"""Calls of the native packer and unpacker; what they compute is said in `scale_search.py` and `packing.py`."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixtral.ops.linear_native import NUMBERS
from pixtral.ops.native.library import kernels
from pixtral.ops.packing import PackedWeight, packed_shapes
from pixtral.ops.scale_search import refuse_non_finite


def packs_natively(tensor: Tensor) -> bool:
    """Whether the kernels are there and can read this tensor."""
    return tensor.is_cpu and _function("px_pack") is not None


def native_pack(weight: Tensor, bits: int, group_size: int) -> PackedWeight:
    """Quantize (N, K) weights."""
    shapes = packed_shapes(bits, group_size, *weight.shape)
    codes, scales, row_scales = (torch.empty(shape, dtype=dtype) for dtype, shape in shapes.values())
    packed = PackedWeight(bits, group_size, weight.shape[0], weight.shape[1], codes, scales, row_scales)
    if weight.dtype not in NUMBERS:
        weight = weight.float()
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    if codes.numel() == 0:
        row_scales.zero_()
        return packed
    work = torch.empty(scales.numel())
    function = _function("px_pack")
    assert function is not None
    bad = function(_numbers(weight, packed), work.data_ptr())
    if bad >= 0:
        row = bad // weight.shape[1]
        refuse_non_finite(weight[row : row + 1].float(), row)
    return packed


def native_unpack(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The (N, K) weights that the codes stand for."""
    packed.check()
    parts = {name: getattr(packed, name).contiguous() for name in ("codes", "scales", "row_scales")}
    out = torch.empty(packed.out_features, packed.in_features, dtype=dtype if dtype in NUMBERS else torch.float32)
    function = _function("px_unpack")
    assert function is not None
    if out.numel():
        function(_numbers(out, dataclasses.replace(packed, **parts)))
    return out.to(dtype)


def _numbers(dense: Tensor, packed: PackedWeight) -> Any:
    """A call as the kernels take it."""
    numbers = (
        dense.data_ptr(),
        NUMBERS[dense.dtype],
        *dense.shape,
        dense.stride(0),
        packed.bits,
        packed.group_size,
        torch.get_num_threads(),
        packed.codes.data_ptr(),
        packed.scales.data_ptr(),
        packed.row_scales.data_ptr(),
    )
    return (ctypes.c_int64 * len(numbers))(*numbers)


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    library = kernels()
    if library is None:
        return None
    if name == "px_pack":
        return library.function(name, [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int64)
    return library.function(name, [ctypes.c_void_p])
