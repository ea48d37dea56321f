"""Linear layers on 4-bit and 8-bit weights: packing, unpacking and products.

Activations are quantized to 8 bits on the fly, per row and 128 columns, or the weights are unpacked for them. Gradients
reach the activations and the biases, as if the activations had not been rounded; packed weights have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.errors import ConfigError
from pixtral.ops import linear_operators as _operators  # noqa: F401  defines torch.ops.pixtral
from pixtral.ops.linear_native import native_gated_linear, native_linear, runs_natively
from pixtral.ops.packing import PackedWeight, choose_group_size, packed_shapes, tensors_of

__all__ = ["PackedWeight", "choose_group_size", "gated_linear", "linear", "pack", "packed_shapes", "unpack"]

ACTIVATIONS = ("int8", "bf16")


def pack(weight: Tensor, bits: int, group_size: int) -> PackedWeight:
    """Quantize (N, K) weights of any float dtype, with the scales that leave the smallest squared error.

    Raises:
        QuantizationError: the bits or the group size do not fit, or a weight is NaN or infinite.
    """
    packed = torch.ops.pixtral.pack.default(weight, bits, group_size)
    return PackedWeight(bits, group_size, weight.shape[0], weight.shape[1], *packed)


def unpack(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The (N, K) weights that the codes stand for."""
    numbers = (packed.bits, packed.group_size, packed.out_features)
    unpacked: Tensor = torch.ops.pixtral.unpack.default(*tensors_of(packed), *numbers, dtype)
    return unpacked


def linear(
    x: Tensor,
    weights: Sequence[PackedWeight],
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


def gated_linear(x: Tensor, gate: PackedWeight, up: PackedWeight, *, activations: str = "int8") -> Tensor:
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


def _packed(weights: Sequence[PackedWeight]) -> tuple[list[Tensor] | list[int], ...]:
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
