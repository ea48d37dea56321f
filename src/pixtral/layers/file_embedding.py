"""Token embeddings that stay in their file: the rows that are asked for are read, and nothing else takes memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RowFile:
    """A table of equal rows somewhere in an open file."""

    def __init__(self, descriptor: int, start: int, row_bytes: int) -> None:
        """
        Args:
            descriptor: of the file; duplicated, so the caller may close it.
            start: where the first row begins.
            row_bytes: of one row.
        """
        self.start = start
        self.row_bytes = row_bytes
        self._descriptor = os.dup(descriptor)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), row_bytes) uint8.

        Raises:
            OSError: the file became shorter.
        """
        out = torch.empty(len(rows), self.row_bytes, dtype=torch.uint8)
        for place, row in zip(out.numpy(), rows, strict=True):
            count = os.preadv(self._descriptor, [place.data], self.start + row * self.row_bytes)
            if count != self.row_bytes:
                raise OSError(
                    f"row {row} of the embeddings ends after {count} of {self.row_bytes} bytes: file cut short"
                )
        return out


class FileEmbedding(nn.Embedding):
    """Token embeddings whose weight is mapped from a file, and whose rows are read from it directly.

    Touching a mapped table makes 2 MiB resident for a row of 10 KiB (the page cache hands out large folios), a prompt
    of a thousand tokens all of it: 1.3 GB of the 12B model. The mapped weight serves every other use.
    """

    rows: RowFile | None
    _origin: tuple[object, ...]

    @classmethod
    def over(cls, old: nn.Embedding, descriptor: int, start: int) -> FileEmbedding:
        """An embedding of the same (mapped) weight, whose bytes begin at `start` of the open file."""
        # given its weight it draws none, which on `meta` would import 67 MB of decompositions
        new = cls(old.num_embeddings, old.embedding_dim, _weight=old.weight)
        new.weight = old.weight
        new.train(old.training)
        new.rows = RowFile(descriptor, start, old.embedding_dim * old.weight.element_size())
        new._origin = new._identity()
        return new

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., C)."""
        flat = ids.reshape(-1)
        if self.rows is None or not self._is_plain(flat):
            return super().forward(ids)
        rows = self.rows.read(flat.tolist())
        return rows.view(self.weight.dtype).view(*ids.shape, self.embedding_dim)

    def _is_plain(self, ids: Tensor) -> bool:
        """Whether the rows are wanted as the file has them, and all are there."""
        if torch.compiler.is_compiling() or ids.device.type != "cpu" or self._identity() != self._origin:
            return False
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return False
        return len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) < self.num_embeddings

    def _identity(self) -> tuple[object, ...]:
        """Changes when the weight is replaced, cast, moved or written to."""
        return self.weight.dtype, self.weight.device, self.weight.data_ptr(), self.weight._version

    def __getstate__(self) -> dict[str, Any]:
        """A copy is an ordinary embedding: it has a weight of its own, in memory."""
        return {**self.__dict__, "rows": None}
