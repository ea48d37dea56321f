"""Weights that are used where they lie: files mapped into memory, for quantized models on a CPU.

What a mapping costs is said in `tensors.py`. Here it pays: a model of 12 billion parameters is ready at once, two
programs share its pages, and of the embeddings (1.3 GB, one row per token) only the rows that occur become resident.
Pages are private: whoever writes to such a tensor changes his own copy, never the file.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from pixtral.checkpoints.tensors import TensorInfo
from pixtral.models.rows import FileEmbedding


def can_map(info: TensorInfo) -> bool:
    """Whether a tensor lies where its dtype may be read from (files of other programs align as they like)."""
    return info.nbytes > 0 and info.start % info.dtype.itemsize == 0


class Mappings:
    """Files mapped on first use, each once; a mapping lives as long as one of its tensors."""

    def __init__(self) -> None:
        self._files: dict[Path, mmap.mmap] = {}

    def tensor(self, info: TensorInfo, *, rows: bool = False) -> Tensor:
        """A tensor in the pages of its file.

        Args:
            info: a tensor for which `can_map` is true.
            rows: it is read row by row, here and there; otherwise the system is asked to fetch all of it now.
        """
        assert can_map(info)
        if info.file not in self._files:
            with info.file.open("rb") as stream:
                self._files[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        pages = self._files[info.file]
        self._advise(pages, info, rows)
        flat = torch.frombuffer(pages, dtype=info.dtype, count=info.numel, offset=info.start)
        return flat.view(info.shape)

    def rows(self, old: nn.Embedding, info: TensorInfo) -> nn.Embedding:
        """An embedding of the mapped weight that reads its rows from the file, where the system can."""
        if not hasattr(os, "preadv"):  # not on Windows
            return old
        with info.file.open("rb") as stream:
            return FileEmbedding.over(old, stream.fileno(), info.start)

    def _advise(self, pages: mmap.mmap, info: TensorInfo, rows: bool) -> None:
        if not hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            return
        start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
        pages.madvise(mmap.MADV_RANDOM if rows else mmap.MADV_WILLNEED, start, info.stop - start)
