"""Calls of the native quantized linear layers.

The kernels do not check their arguments, so this module does. A call is one array of 64-bit integers, the fastest way
through ctypes; addresses are read at every call, because tensors may have been moved or replaced.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixtral.errors import QuantizationError
from pixtral.ops.native.library import kernels
from pixtral.ops.quantized_weight import NUMBERS, QuantizedWeight


def runs_natively(x: Tensor) -> bool:
    """Whether the library is built and takes this tensor: on the CPU, float32, bfloat16 or float16."""
    return x.is_cpu and x.dtype in NUMBERS and _function() is not None


def native_linear(x: Tensor, weights: Sequence[QuantizedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """x (M, K) -> one (M, N_i) for each weight, in x's dtype."""
    if len({weight.group_size for weight in weights}) > 1:  # the kernels quantize x for one group size
        pairs = zip(weights, biases, strict=True)
        return [out for weight, bias in pairs for out in native_linear(x, [weight], [bias])]
    outs = [torch.empty((x.shape[0], weight.out_features), dtype=x.dtype) for weight in weights]
    _call(x, weights, biases, outs, gated=False)
    return outs


def native_gated_linear(x: Tensor, gate: QuantizedWeight, up: QuantizedWeight) -> Tensor:
    """silu(x gate^T) * (x up^T), (M, N) in x's dtype."""
    if (gate.bits, gate.group_size) != (up.bits, up.group_size):
        gates, ups = native_linear(x.float(), [gate, up], [None, None])
        return (torch.nn.functional.silu(gates) * ups).to(x.dtype)
    if gate.out_features != up.out_features:
        raise QuantizationError(
            f"the gate has {gate.out_features} output features and up has {up.out_features}; they are multiplied, "
            "so both need the same number"
        )
    out = torch.empty((x.shape[0], gate.out_features), dtype=x.dtype)
    _call(x, (gate, up), (None, None), (out, out), gated=True)
    return out


def _call(
    x: Tensor,
    weights: Sequence[QuantizedWeight],
    biases: Sequence[Tensor | None],
    outs: Sequence[Tensor],
    *,
    gated: bool,
) -> None:
    rows, width = x.shape
    if rows == 0 or not weights:
        return
    if x.stride(1) != 1:
        x = x.contiguous()
    threads = torch.get_num_threads()
    numbers = [x.data_ptr(), NUMBERS[x.dtype], rows, width, x.stride(0), threads, gated, len(weights)]
    kept = []  # keeps converted biases alive until the call has ended
    for weight, bias, out in zip(weights, biases, outs, strict=True):
        _check(weight, width)
        codes, scales, row_scales = weight.codes, weight.scales, weight.row_scales
        address, kind = 0, 0
        if bias is not None:
            bias = _usable(bias, weight)
            kept.append(bias)
            address, kind = bias.data_ptr(), NUMBERS[bias.dtype]
        numbers += (codes.data_ptr(), scales.data_ptr(), row_scales.data_ptr(), address, kind)
        numbers += (weight.bits, weight.group_size, weight.out_features, out.data_ptr())
    function = _function()
    assert function is not None
    if not function((ctypes.c_int64 * len(numbers))(*numbers)):
        raise MemoryError(f"no memory to quantize {rows} x {width} activations; use fewer rows at a time")


def _check(weight: QuantizedWeight, width: int) -> None:
    """Raise unless the kernels can read this weight; quick, since it is done at each call."""
    if weight.in_features != width:
        raise QuantizationError(
            f"the input has {width} features, but the weight takes {weight.in_features}; pass (rows, features)"
        )
    codes, scales, row_scales = weight.codes, weight.scales, weight.row_scales
    padded = -(-weight.out_features // 16) * 16
    if (
        codes.dtype is not torch.uint8
        or scales.dtype is not torch.int8
        or row_scales.dtype is not torch.float32
        or codes.numel() * 8 != padded * width * weight.bits
        or scales.numel() * weight.group_size != padded * width
        or row_scales.numel() != padded
        or not (codes.is_cpu and scales.is_cpu and row_scales.is_cpu)
        or not (codes.is_contiguous() and scales.is_contiguous() and row_scales.is_contiguous())
    ):
        weight.check()
        raise QuantizationError("the weight's tensors are not contiguous on the CPU; call .contiguous() or .cpu()")


def _usable(bias: Tensor, weight: QuantizedWeight) -> Tensor:
    """The bias as the kernels read it."""
    if bias.shape != (weight.out_features,):
        raise QuantizationError(
            f"the bias has shape {tuple(bias.shape)}, but the weight has {weight.out_features} output features"
        )
    return (bias if bias.dtype in NUMBERS else bias.float()).contiguous()


@functools.cache
def _function() -> Callable[..., int] | None:
    library = kernels()
    return None if library is None else library.function("px_linear", [ctypes.c_void_p], ctypes.c_int)
