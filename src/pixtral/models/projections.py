"""Linear layers as the networks call them: those that share their input in one operation where there is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixtral.models.packed import PackedLinear
from pixtral.ops.dense import dense_gated_linear, dense_linear, runs_dense
from pixtral.ops.linear import gated_linear, linear


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of x (N, C), a row's result having the same bits alone as among others.

    Packed layers quantize x once for all of them; bfloat16 on a CPU goes through kernels of ours, where they are built.
    """
    packed = _packed(*layers)
    if packed is not None:
        biases = [p.bias for p in packed]
        return linear(x, [p.packed for p in packed], biases, activations=packed[0].activations)
    plain = _plain(x, *layers)
    if plain is not None:
        return dense_linear(x, [layer.weight for layer in plain], [layer.bias for layer in plain])
    return [_through(layer, x) for layer in layers]


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """What one layer makes of x (..., C); see `project`."""
    if x.dim() > 2:
        rows = project(x.flatten(0, -2), layer)[0]
        return rows.view(*x.shape[:-1], rows.shape[-1])
    return project(x, layer)[0] if x.dim() == 2 else _through(layer, x)


def _through(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x). PyTorch's product of one bfloat16 row sums in another order than that of several: it is taken twice."""
    if _is_single_row(layer, x):
        pair: Tensor = layer(x.expand(2, -1))
        return pair[:1]
    out: Tensor = layer(x)
    return out


def _is_single_row(layer: nn.Module, x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not x.is_cpu:
        return False
    if x.dim() != 2 or len(x) != 1 or type(layer) is not nn.Linear or _is_hooked(layer):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def gated(x: Tensor, gate: nn.Module, up: nn.Module) -> Tensor | None:
    """silu(gate(x)) * up(x) for x (N, C) in one operation, or None when there is none for these layers."""
    packed = _packed(gate, up)
    if packed is not None and all(p.bias is None for p in packed):
        return gated_linear(x, packed[0].packed, packed[1].packed, activations=packed[0].activations)
    plain = _plain(x, gate, up)
    if plain is not None and all(layer.bias is None for layer in plain):
        return dense_gated_linear(x, plain[0].weight, plain[1].weight)
    return None


def takes_kernels(x: Tensor, *layers: nn.Module) -> bool:
    """Whether all are ordinary layers, as nobody has changed them, whose products with x the kernels take."""
    return _plain(x, *layers) is not None


def _packed(*layers: nn.Module) -> list[PackedLinear] | None:
    """The layers, when all are packed and none is hooked, wrapped or to be differentiated through."""
    packed = [layer for layer in layers if type(layer) is PackedLinear and not _is_hooked(layer)]
    if len(packed) < len(layers) or torch.is_grad_enabled() or len({p.activations for p in packed}) > 1:
        return None
    return packed


def _plain(x: Tensor, *layers: nn.Module) -> list[nn.Linear] | None:
    plain = [layer for layer in layers if type(layer) is nn.Linear and not _is_hooked(layer)]
    return plain if len(plain) == len(layers) and runs_dense(x, *(layer.weight for layer in plain)) else None


def _is_hooked(layer: nn.Module) -> bool:
    """Whether something happens around the layer's forward; accelerate puts another one in its place."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or "forward" in vars(layer)
