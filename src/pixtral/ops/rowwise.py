"""RMS norm, rotary embedding and residual sum: in PyTorch, and for bfloat16 on a CPU as native one-pass kernels."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixtral.ops.native.library import kernels_if_built

_LIBRARY: Any = torch.library.Library("pixtral", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor")
_LIBRARY.define("add(Tensor x, Tensor y) -> Tensor")
_LIBRARY.define("rotate_pair(Tensor q, Tensor k, Tensor cos, Tensor sin) -> (Tensor, Tensor)")

MIN_ADD = (
    1 << 15
)  # elements from which PyTorch would start its own threads, which then compete with the kernels' for the cores

_P, _N = ctypes.c_void_p, ctypes.c_int64


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm of the rows of x (N, C), computed in float32, scaled in x's dtype (arXiv:1910.07467)."""
    # the mean square through the norm needs no float32 copy of x, which in bfloat16 would cost more than the rest
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    return (x * torch.rsqrt(mean_square + eps)).to(x.dtype) * weight


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (N, H, D), cos and sin (N, 1, D/2); pairs are c and c + D/2 (arXiv:2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, native: bool = True) -> Tensor:
    """`rms_norm_reference`, by the kernels where they apply: (N, C) in x's dtype."""
    if native and x.dim() == 2 and weight.is_contiguous() and _native(x, weight):
        out: Tensor = torch.ops.pixtral.rms_norm(x, weight, eps)
        return out
    return rms_norm_reference(x, weight, eps)


def rotate_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, native: bool = True) -> tuple[Tensor, Tensor]:
    """`rotate_reference` of queries (N, H, D) and keys (N, K, D), by the kernels where they apply."""
    if native and _native(q, k, cos, sin):
        out: tuple[Tensor, Tensor] = torch.ops.pixtral.rotate_pair(q, k, cos, sin)
        return out
    return rotate_reference(q, cos, sin), rotate_reference(k, cos, sin)


def add(x: Tensor, y: Tensor, *, native: bool = True) -> Tensor:
    """x + y of one shape, by the kernels where they apply."""
    if (
        native
        and x.numel() > MIN_ADD
        and x.shape == y.shape
        and x.is_contiguous()
        and y.is_contiguous()
        and _native(x, y)
    ):
        out: Tensor = torch.ops.pixtral.add(x, y)
        return out
    return x + y


def _native(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: bfloat16 on the CPU, without gradients."""
    for x in tensors:
        if x.dtype is not torch.bfloat16 or not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()):
            return False
    return _functions() is not None


@functools.cache
def _functions() -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]] | None:
    library = kernels_if_built()
    if library is None:
        return None
    norm = library.function("px_rms_norm", [_P, _N, _P, _P, _N, _N, ctypes.c_float, ctypes.c_int])
    rotate = library.function("px_rotate", [_P] * 6 + [_N] * 4 + [ctypes.c_int])
    return norm, rotate, library.function("px_add", [_P, _P, _P, _N, ctypes.c_int])


def _add(x: Tensor, y: Tensor) -> Tensor:
    functions = _functions()
    assert functions is not None and x.is_contiguous() and y.is_contiguous() and x.shape == y.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    functions[2](x.data_ptr(), y.data_ptr(), out.data_ptr(), x.numel(), torch.get_num_threads())
    return out


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    functions = _functions()
    assert functions is not None and weight.shape == x.shape[1:]
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype)
    threads = torch.get_num_threads()
    functions[0](x.data_ptr(), x.stride(0), weight.data_ptr(), out.data_ptr(), rows, width, eps, threads)
    return out


def _rotate_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    functions = _functions()
    rows, heads, channels = q.shape
    key_heads = k.shape[1]
    assert functions is not None and k.shape == (rows, key_heads, channels)
    assert cos.shape == sin.shape == (rows, 1, channels // 2)
    q, k, cos, sin = q.contiguous(), k.contiguous(), cos.contiguous(), sin.contiguous()
    q_out, k_out = torch.empty(q.shape, dtype=q.dtype), torch.empty(k.shape, dtype=k.dtype)
    functions[1](
        q.data_ptr(), k.data_ptr(), cos.data_ptr(), sin.data_ptr(), q_out.data_ptr(), k_out.data_ptr(),
        rows, heads, key_heads, channels // 2, torch.get_num_threads(),
    )  # fmt: skip
    return q_out, k_out


def _add_fake(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _rms_norm_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _rotate_pair_fake(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


_LIBRARY.impl("rms_norm", _rms_norm, "CPU")
_LIBRARY.impl("add", _add, "CPU")
_LIBRARY.impl("rotate_pair", _rotate_pair, "CPU")
torch.library.register_fake("pixtral::rms_norm", _rms_norm_fake, lib=_LIBRARY)
torch.library.register_fake("pixtral::add", _add_fake, lib=_LIBRARY)
torch.library.register_fake("pixtral::rotate_pair", _rotate_pair_fake, lib=_LIBRARY)
