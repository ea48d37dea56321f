"""Linear layers that share their input: done in one operation where they hold packed weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixtral.models.packed import PackedLinear
from pixtral.ops.linear import gated_linear, linear


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of x (N, C); packed layers quantize x once for all of them."""
    packed = _packed(*layers)
    if packed is None:
        return [layer(x) for layer in layers]
    first = packed[0]
    return linear(x, [p.packed for p in packed], [p.bias for p in packed], activations=first.activations)


def gated(x: Tensor, gate: nn.Module, up: nn.Module) -> Tensor | None:
    """silu(gate(x)) * up(x) for x (N, C) in one operation, or None when the layers are not packed."""
    packed = _packed(gate, up)
    if packed is None or any(p.bias is not None for p in packed):
        return None
    return gated_linear(x, packed[0].packed, packed[1].packed, activations=packed[0].activations)


def _packed(*layers: nn.Module) -> list[PackedLinear] | None:
    """The layers, when all are packed and none is hooked, wrapped or to be differentiated through."""
    packed = [p for p in layers if type(p) is PackedLinear and not p._forward_hooks and not p._forward_pre_hooks]
    if len(packed) < len(layers) or torch.is_grad_enabled() or len({p.activations for p in packed}) > 1:
        return None
    return packed
