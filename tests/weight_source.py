"""A weight in memory as quantizers read it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pixtral.quantization.base import block_rows


class TensorSource:
    """A weight that is in memory already."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return tuple(self.weight.shape)

    @property
    def dtype(self) -> torch.dtype:
        """As it is."""
        return self.weight.dtype

    def read(self) -> Tensor:
        """A copy in CPU memory."""
        return self.weight.detach().to("cpu", copy=True)

    def blocks(self, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """See `WeightSource.blocks`."""
        rows, columns = self.weight.shape
        step = block_rows(columns * self.weight.element_size(), multiple)
        for start in range(0, rows, step):
            yield start, self.weight[start : start + step].detach().cpu()
