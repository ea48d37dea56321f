"""Linear layers as the networks call them: those that share their input in one operation where weights are packed."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pixtral.models.packed import PackedLinear
from pixtral.ops.dense import dense, takes
from pixtral.ops.linear import gated_linear, linear


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of x (N, C); packed layers quantize x once for all of them."""
    packed = _packed(*layers)
    if packed is None:
        return [applied(layer, x) for layer in layers]
    first = packed[0]
    return linear(x, [p.packed for p in packed], [p.bias for p in packed], activations=first.activations)


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) for x (..., C), a row's result having the same bits alone as among others.

    PyTorch's product of one bfloat16 row on a CPU sums in another order than that of several, and is slower: 15 GB/s
    of weights against 20 on two Zen 4 cores. So where the layer is too wide for a kernel of ours, a single row is
    taken twice.
    """
    if takes(layer, x):
        return dense(x, cast(nn.Linear, layer).weight, cast(nn.Linear, layer).bias)
    if _is_single_row(layer, x):
        pair: Tensor = layer(x.expand(2, -1))
        return pair[:1]
    out: Tensor = layer(x)
    return out


def _is_single_row(layer: nn.Module, x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not x.is_cpu:
        return False
    if x.dim() != 2 or len(x) != 1:
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is nn.Linear and not hooked and torch.backends.cpu.get_cpu_capability() == "AVX512"


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
