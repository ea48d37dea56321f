"""Linear layers on 4-bit and 8-bit weights: packing, unpacking and products.

Activations are quantized to 8 bits on the fly, per row and 128 columns, or the weights are unpacked for them. Gradients
reach the activations and the biases, as if the activations had not been rounded; packed weights have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixtral.errors import ConfigError
from pixtral.ops.linear_native import native_gated_linear, native_linear, runs_natively
from pixtral.ops.linear_reference import (
    dequantized_gated_linear,
    dequantized_linear,
    gated_linear_gradient,
    gated_linear_reference,
    linear_gradient,
    linear_reference,
)
from pixtral.ops.quantized_weight import (
    QuantizedWeight,
    choose_group_size,
    dequantize_reference,
    native_dequantize,
    native_quantize,
    quantize_reference,
    quantized_shapes,
    quantizes_natively,
    tensors_of,
)

# FOLDED pixtral.ops.linear: The quantized linear layers as operators of torch.library: what runs, how it is traced, and its gradient.


_LIBRARY: Any = torch.library.Library("pixtral", "FRAGMENT")  # type: ignore[no-untyped-call]
_TENSORS = "Tensor[] codes, Tensor[] scales, Tensor[] row_scales"
_NUMBERS = "int[] bits, int[] group_sizes, int[] out_features, str activations"
# `biases` is empty, or has one for each weight, of length 0 where there is none
_LIBRARY.define("quantize_weight(Tensor weight, int bits, int group_size) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "dequantize_weight(Tensor codes, Tensor scales, Tensor row_scales, int bits, int group_size, int out_features, "
    "ScalarType dtype) -> Tensor"
)
_LIBRARY.define(f"linear(Tensor x, Tensor[] biases, {_TENSORS}, {_NUMBERS}) -> Tensor[]")
_LIBRARY.define(f"gated_linear(Tensor x, {_TENSORS}, {_NUMBERS}) -> Tensor")

Tensors = Sequence[Tensor]
Numbers = Sequence[int]


def _weights(codes: Tensors, scales: Tensors, row_scales: Tensors, *numbers: Numbers) -> list[QuantizedWeight]:
    """An operator's tensors and numbers (bits, group sizes, output features), put together again."""
    each = zip(*numbers, codes, scales, row_scales, strict=True)
    return [QuantizedWeight(b, g, n, c.shape[1] * 32 // b, c, s, r) for b, g, n, c, s, r in each]


def _quantize(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    packed = (native_quantize if quantizes_natively(weight) else quantize_reference)(weight, bits, group_size)
    return packed.codes, packed.scales, packed.row_scales


def _quantize_fake(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = quantized_shapes(bits, group_size, *weight.shape)
    codes, scales, row_scales = (weight.new_empty(shape, dtype=dtype) for dtype, shape in shapes.values())
    return codes, scales, row_scales


def _dequantize(
    codes: Tensor, scales: Tensor, row_scales: Tensor, bits: int, group_size: int, out_features: int, dtype: torch.dtype
) -> Tensor:
    (weight,) = _weights([codes], [scales], [row_scales], [bits], [group_size], [out_features])
    return (native_dequantize if quantizes_natively(codes) else dequantize_reference)(weight, dtype)


def _dequantize_fake(
    codes: Tensor, scales: Tensor, row_scales: Tensor, bits: int, group_size: int, out_features: int, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty(out_features, codes.shape[1] * 32 // bits, dtype=dtype)


def _linear(x: Tensor, biases: Tensors, *packed: Any) -> list[Tensor]:
    weights = _weights(*packed[:-1])
    each = [bias if len(bias) else None for bias in biases] if biases else [None] * len(weights)
    if packed[-1] == "int8" and runs_natively(x):
        return native_linear(x, weights, each)
    product = linear_reference if packed[-1] == "int8" else dequantized_linear
    return [product(x, weight, bias) for weight, bias in zip(weights, each, strict=True)]


def _linear_fake(x: Tensor, biases: Tensors, *packed: Any) -> list[Tensor]:
    return [x.new_empty(x.shape[0], n) for n in packed[5]]


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.biases, ctx.packed = inputs[1], inputs[2:-1]


def _linear_backward(ctx: Any, grads: Tensors) -> tuple[Any, ...]:
    parts = zip(grads, _weights(*ctx.packed), strict=True)
    gradient = sum(linear_gradient(grad, weight) for grad, weight in parts) if ctx.needs_input_grad[0] else None
    pairs = zip(grads, ctx.biases, strict=False)  # no biases at all, or one of each weight
    biases = [grad.sum(0, dtype=torch.float32).to(bias.dtype) if len(bias) else None for grad, bias in pairs]
    return gradient, biases, *[[None] * len(grads)] * 3, *[None] * 4


def _gated_linear(x: Tensor, *packed: Any) -> Tensor:
    gate, up = _weights(*packed[:-1])
    if packed[-1] != "int8":
        return dequantized_gated_linear(x, gate, up)
    return (native_gated_linear if runs_natively(x) else gated_linear_reference)(x, gate, up)


def _gated_linear_fake(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(x.shape[0], packed[5][0])


def _gated_linear_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.packed = inputs[1:-1]


def _gated_linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return gated_linear_gradient(grad, ctx.saved_tensors[0], *_weights(*ctx.packed)), *[[None] * 2] * 3, *[None] * 4


for _name, _run, _fake in (
    ("quantize_weight", _quantize, _quantize_fake),
    ("dequantize_weight", _dequantize, _dequantize_fake),
    ("linear", _linear, _linear_fake),
    ("gated_linear", _gated_linear, _gated_linear_fake),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pixtral::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("pixtral::linear", _linear_backward, setup_context=_linear_context, lib=_LIBRARY)
torch.library.register_autograd(
    "pixtral::gated_linear", _gated_linear_backward, setup_context=_gated_linear_context, lib=_LIBRARY
)


__all__ = [
    "QuantizedWeight",
    "choose_group_size",
    "dequantize_weight",
    "gated_linear",
    "linear",
    "quantize_weight",
    "quantized_shapes",
]

ACTIVATIONS = ("int8", "bf16")


def quantize_weight(weight: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """Quantize (N, K) weights of any float dtype, with the scales that leave the smallest squared error.

    Raises:
        QuantizationError: the bits or the group size do not fit, or a weight is NaN or infinite.
    """
    packed = torch.ops.pixtral.quantize_weight.default(weight, bits, group_size)
    return QuantizedWeight(bits, group_size, weight.shape[0], weight.shape[1], *packed)


def dequantize_weight(packed: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The (N, K) weights that the codes stand for."""
    numbers = (packed.bits, packed.group_size, packed.out_features)
    unpacked: Tensor = torch.ops.pixtral.dequantize_weight.default(*tensors_of(packed), *numbers, dtype)
    return unpacked


def linear(
    x: Tensor,
    weights: Sequence[QuantizedWeight],
    biases: Sequence[Tensor | None] | None = None,
    *,
    activations: str = "int8",
) -> list[Tensor]:
    """Multiply x by each of several weights.

    Args:
        x: (M, K) float32, float16 or bfloat16; quantized once for all weights.
        weights: each (N_i, K).
        biases: one (N_i,) or None for each weight.
        activations: "int8", or "bf16" to multiply by the unpacked weights in x's dtype.

    Returns:
        One (M, N_i) for each weight, in x's dtype.
    """
    _check(activations)
    if activations == "int8" and _is_plain(x, biases or ()):
        return native_linear(x, weights, biases or [None] * len(weights))
    none = x.new_empty(0) if biases else x
    given = [none if bias is None else bias for bias in biases or ()]
    outs: list[Tensor] = torch.ops.pixtral.linear.default(x, given, *_packed(weights), activations)
    return outs


def gated_linear(x: Tensor, gate: QuantizedWeight, up: QuantizedWeight, *, activations: str = "int8") -> Tensor:
    """silu(x gate^T) * (x up^T) for x (M, K): (M, N) in x's dtype."""
    _check(activations)
    if activations == "int8" and _is_plain(x, ()):
        return native_gated_linear(x, gate, up)
    out: Tensor = torch.ops.pixtral.gated_linear.default(x, *_packed((gate, up)), activations)
    return out


def _is_plain(x: Tensor, biases: Sequence[Tensor | None]) -> bool:
    """Whether the kernel can be called at once: nobody traces, wraps or differentiates the call.

    The way through torch.library takes 8 to 15 microseconds more, and a token makes hundreds of calls.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(b is not None and b.requires_grad for b in biases)):
        return False
    return runs_natively(x)


def _packed(weights: Sequence[QuantizedWeight]) -> tuple[list[Tensor] | list[int], ...]:
    """The weights as an operator takes them: a list for each field."""
    return (
        [weight.codes for weight in weights],
        [weight.scales for weight in weights],
        [weight.row_scales for weight in weights],
        [weight.bits for weight in weights],
        [weight.group_size for weight in weights],
        [weight.out_features for weight in weights],
    )


def _check(activations: str) -> None:
    if activations not in ACTIVATIONS:
        raise ConfigError(f"activations is {activations!r}; expected one of {', '.join(ACTIVATIONS)}")
