"""Linear layers: weights in 4 or 8 bits as a module, and products that share their input in one operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pixtral.ops.dense import dense_gated_linear, dense_linear, runs_dense
from pixtral.ops.linear import gated_linear, linear
from pixtral.ops.quantized_weight import QuantizedWeight, quantized_shapes


class QuantizedLinear(nn.Module):
    """y = x W^T + b, with W in groups of few bits (format: `ops.quantized_weight`).

    The quantized tensors are buffers: they are saved and moved with the model, never trained, and keep their data types
    when the model is cast. What goes in and out, and the bias, are of the model's dtype.
    """

    codes: Tensor
    scales: Tensor
    row_scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        bits: int,
        group_size: int,
        activations: str = "int8",
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            in_features, out_features, bias: as of nn.Linear.
            bits: 4 or 8.
            group_size: columns that share a scale; divides `in_features`.
            activations: "int8" (quantized on the fly) or "bf16" (the weights are dequantized instead).
            dtype: of the bias.
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bits = bits
        self.group_size = group_size
        self.activations = activations
        for name, (kind, shape) in quantized_shapes(bits, group_size, out_features, in_features).items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None

    @property
    def quantized_weight(self) -> QuantizedWeight:
        """The weight as the operations take it."""
        return QuantizedWeight(
            self.bits, self.group_size, self.out_features, self.in_features, self.codes, self.scales, self.row_scales
        )

    def fill(self, quantized: QuantizedWeight) -> None:
        """Take a quantized weight of this layer's shape, without copying it."""
        assert (quantized.bits, quantized.group_size) == (self.bits, self.group_size)
        assert (quantized.out_features, quantized.in_features) == (self.out_features, self.in_features)
        self.codes, self.scales, self.row_scales = quantized.codes, quantized.scales, quantized.row_scales

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the dtype of x."""
        rows = x.reshape(-1, self.in_features)
        (out,) = linear(rows, [self.quantized_weight], [self.bias], activations=self.activations)
        return out.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move or cast; scales stay float32 whatever the model is cast to: they belong to the codes."""
        exact = self.row_scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch leaves it without annotations
        if self.row_scales.dtype != exact.dtype:
            self.row_scales = exact.to(self.row_scales.device)
        return self

    def extra_repr(self) -> str:
        """For printing a model."""
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, bits={self.bits}, group_size={self.group_size}"


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """Apply layers to the same x (N, C); the result of a row has the same bits alone and among others.

    Quantized layers quantize x once for all of them; bfloat16 on a CPU goes through the native kernels,
    where they are built.
    """
    quantized = _quantized(*layers)
    if quantized is not None:
        biases = [p.bias for p in quantized]
        return linear(x, [p.quantized_weight for p in quantized], biases, activations=quantized[0].activations)
    plain = _plain(x, *layers)
    if plain is not None:
        return dense_linear(x, [layer.weight for layer in plain], [layer.bias for layer in plain])
    return [_through(layer, x) for layer in layers]


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply one layer to x (..., C); see `project`."""
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
    quantized = _quantized(gate, up)
    if quantized is not None and all(p.bias is None for p in quantized):
        weights = [layer.quantized_weight for layer in quantized]
        return gated_linear(x, *weights, activations=quantized[0].activations)
    plain = _plain(x, gate, up)
    if plain is not None and all(layer.bias is None for layer in plain):
        return dense_gated_linear(x, plain[0].weight, plain[1].weight)
    return None


def takes_kernels(x: Tensor, *layers: nn.Module) -> bool:
    """Whether all are plain nn.Linear layers without hooks, whose products with x the kernels compute."""
    return _plain(x, *layers) is not None


def _quantized(*layers: nn.Module) -> list[QuantizedLinear] | None:
    """The layers, when all are quantized and none is hooked, wrapped or to be differentiated through."""
    quantized = [layer for layer in layers if type(layer) is QuantizedLinear and not _is_hooked(layer)]
    if len(quantized) < len(layers) or torch.is_grad_enabled() or len({p.activations for p in quantized}) > 1:
        return None
    return quantized


def _plain(x: Tensor, *layers: nn.Module) -> list[nn.Linear] | None:
    plain = [layer for layer in layers if type(layer) is nn.Linear and not _is_hooked(layer)]
    return plain if len(plain) == len(layers) and runs_dense(x, *(layer.weight for layer in plain)) else None


def _is_hooked(layer: nn.Module) -> bool:
    """Whether the layer has hooks or another forward, as accelerate installs."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks) or "forward" in vars(layer)
