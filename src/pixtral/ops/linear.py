"""Linear layers on 4-bit and 8-bit weights, as operators of torch.library with a gradient.

Activations are quantized to 8 bits on the fly, per row and 128 columns, or the weights are dequantized for them.
Gradients reach the activations and the biases, as if the activations had not been rounded; quantized weights have none.
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
from pixtral.ops.quantized_weight import QuantizedWeight

ACTIVATIONS = ("int8", "bf16")


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
        activations: "int8", or "bf16" to multiply by the dequantized weights in x's dtype.

    Returns:
        One (M, N_i) for each weight, in x's dtype.
    """
    _check(activations)
    if activations == "int8" and _is_plain(x, biases or ()):
        return native_linear(x, weights, biases or [None] * len(weights))
    none = x.new_empty(0) if biases else x
    given = [none if bias is None else bias for bias in biases or ()]
    outs: list[Tensor] = torch.ops.pixtral.linear.default(x, given, *_fields(weights), activations)
    return outs


def gated_linear(x: Tensor, gate: QuantizedWeight, up: QuantizedWeight, *, activations: str = "int8") -> Tensor:
    """silu(x gate^T) * (x up^T) for x (M, K): (M, N) in x's dtype."""
    _check(activations)
    if activations == "int8" and _is_plain(x, ()):
        return native_gated_linear(x, gate, up)
    out: Tensor = torch.ops.pixtral.gated_linear.default(x, *_fields((gate, up)), activations)
    return out


def _is_plain(x: Tensor, biases: Sequence[Tensor | None]) -> bool:
    """Whether the kernel can be called directly: the call is not traced, wrapped or differentiated.

    torch.library's dispatch takes 8 to 15 microseconds, and a token needs hundreds of calls.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(b is not None and b.requires_grad for b in biases)):
        return False
    return runs_natively(x)


def _fields(weights: Sequence[QuantizedWeight]) -> tuple[list[Tensor] | list[int], ...]:
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


_LIBRARY: Any = torch.library.Library("pixtral", "FRAGMENT")  # type: ignore[no-untyped-call]
_TENSORS = "Tensor[] codes, Tensor[] scales, Tensor[] row_scales"
_NUMBERS = "int[] bits, int[] group_sizes, int[] out_features, str activations"
# `biases` is empty, or has one for each weight, of length 0 where there is none
_LIBRARY.define(f"linear(Tensor x, Tensor[] biases, {_TENSORS}, {_NUMBERS}) -> Tensor[]")
_LIBRARY.define(f"gated_linear(Tensor x, {_TENSORS}, {_NUMBERS}) -> Tensor")

Tensors = Sequence[Tensor]
Numbers = Sequence[int]


def _weights(codes: Tensors, scales: Tensors, row_scales: Tensors, *numbers: Numbers) -> list[QuantizedWeight]:
    """An operator's tensors and numbers (bits, group sizes, output features), put together again."""
    each = zip(*numbers, codes, scales, row_scales, strict=True)
    return [QuantizedWeight(b, g, n, c.shape[1] * 32 // b, c, s, r) for b, g, n, c, s, r in each]


def _linear(x: Tensor, biases: Tensors, *quantized: Any) -> list[Tensor]:
    weights = _weights(*quantized[:-1])
    each = [bias if len(bias) else None for bias in biases] if biases else [None] * len(weights)
    if quantized[-1] == "int8" and runs_natively(x):
        return native_linear(x, weights, each)
    product = linear_reference if quantized[-1] == "int8" else dequantized_linear
    return [product(x, weight, bias) for weight, bias in zip(weights, each, strict=True)]


def _linear_fake(x: Tensor, biases: Tensors, *quantized: Any) -> list[Tensor]:
    return [x.new_empty(x.shape[0], n) for n in quantized[5]]


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.biases, ctx.quantized = inputs[1], inputs[2:-1]


def _linear_backward(ctx: Any, grads: Tensors) -> tuple[Any, ...]:
    parts = zip(grads, _weights(*ctx.quantized), strict=True)
    gradient = sum(linear_gradient(grad, weight) for grad, weight in parts) if ctx.needs_input_grad[0] else None
    pairs = zip(grads, ctx.biases, strict=False)  # no biases at all, or one of each weight
    biases = [grad.sum(0, dtype=torch.float32).to(bias.dtype) if len(bias) else None for grad, bias in pairs]
    return gradient, biases, *[[None] * len(grads)] * 3, *[None] * 4


def _gated_linear(x: Tensor, *quantized: Any) -> Tensor:
    gate, up = _weights(*quantized[:-1])
    if quantized[-1] != "int8":
        return dequantized_gated_linear(x, gate, up)
    return (native_gated_linear if runs_natively(x) else gated_linear_reference)(x, gate, up)


def _gated_linear_fake(x: Tensor, *quantized: Any) -> Tensor:
    return x.new_empty(x.shape[0], quantized[5][0])


def _gated_linear_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.quantized = inputs[1:-1]


def _gated_linear_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return gated_linear_gradient(grad, ctx.saved_tensors[0], *_weights(*ctx.quantized)), *[[None] * 2] * 3, *[None] * 4


for _name, _run, _fake in (
    ("linear", _linear, _linear_fake),
    ("gated_linear", _gated_linear, _gated_linear_fake),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pixtral::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("pixtral::linear", _linear_backward, setup_context=_linear_context, lib=_LIBRARY)
torch.library.register_autograd(
    "pixtral::gated_linear", _gated_linear_backward, setup_context=_gated_linear_context, lib=_LIBRARY
)
