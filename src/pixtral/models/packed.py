"""A linear layer that holds its weights in 4 or 8 bits; the computation is `ops.linear`'s."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pixtral.ops.linear import PackedWeight, linear, packed_shapes


class PackedLinear(nn.Module):
    """y = x W^T + b, with W in groups of few bits (the format is described in `ops.linear`).

    The packed tensors are buffers: they are saved and moved with the model, never trained, and keep their data types
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
            activations: "int8" (quantized on the fly) or "bf16" (the weights are unpacked instead).
            dtype: of the bias.
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.bits = bits
        self.group_size = group_size
        self.activations = activations
        for name, (kind, shape) in packed_shapes(bits, group_size, out_features, in_features).items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None

    @property
    def packed(self) -> PackedWeight:
        """The weight as the operations take it."""
        return PackedWeight(
            self.bits, self.group_size, self.out_features, self.in_features, self.codes, self.scales, self.row_scales
        )

    def fill(self, packed: PackedWeight) -> None:
        """Take a packed weight of this layer's shape, without copying it."""
        assert (packed.bits, packed.group_size) == (self.bits, self.group_size)
        assert (packed.out_features, packed.in_features) == (self.out_features, self.in_features)
        self.codes, self.scales, self.row_scales = packed.codes, packed.scales, packed.row_scales

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the dtype of x."""
        rows = x.reshape(-1, self.in_features)
        (out,) = linear(rows, [self.packed], [self.bias], activations=self.activations)
        return out.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
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
