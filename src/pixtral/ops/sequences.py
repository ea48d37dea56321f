"""How rows that are packed one after another divide into sequences."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.ops.layer_cache import LayerCache


@dataclasses.dataclass(frozen=True)
class Packing:
    """How packed rows divide into sequences, and where their keys and values live.

    Attributes:
        q_lens: rows of each sequence in this call; their sum is N.
        kv_lens: keys that each sequence attends to, those of this call included.
        causal: row i of a sequence sees the keys up to its own place; otherwise all keys of its sequence.
        slots: (N,) int64, with a cache: where the keys and values of this call are written.
        tables: with a cache: for each sequence the slots of its keys in order, as a slice or (kv_len,) int64.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    causal: bool
    slots: Tensor | None = None
    tables: tuple[slice | Tensor, ...] | None = None

    @classmethod
    def full(cls, lens: Sequence[int], *, causal: bool) -> Packing:
        """Whole sequences without a cache: each attends to itself alone."""
        return cls(tuple(lens), tuple(lens), causal)

    def on(self, device: torch.device) -> Packing:
        """The same with its indices on a device."""
        if self.slots is None or self.slots.device == device:
            return self
        tables = tuple(table if isinstance(table, slice) else table.to(device) for table in self.tables or ())
        return dataclasses.replace(self, slots=self.slots.to(device), tables=tables)

    @functools.cached_property
    def places(self) -> tuple[list[int], Tensor | None]:
        """Where each sequence's keys begin: in the cache, or in the table of slots that is given as well.

        Made once for all layers of a step.
        """
        tables = self.tables
        assert tables is not None
        if all(isinstance(table, slice) for table in tables):
            return [table.start or 0 for table in tables if isinstance(table, slice)], None
        slots: list[Tensor] = []
        for table, count in zip(tables, self.kv_lens, strict=True):
            if isinstance(table, slice):
                table = torch.arange(table.start or 0, (table.start or 0) + count)
            slots.append(table)
        starts = list(itertools.accumulate(self.kv_lens[:-1], initial=0))
        return starts, torch.cat(slots).contiguous()

    def check(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache | None) -> None:
        """Assert that the lengths account for every row."""
        assert sum(self.q_lens) == len(q) == len(k) == len(v), (self.q_lens, q.shape, k.shape, v.shape)
        assert len(self.q_lens) == len(self.kv_lens)
        if cache is None:
            assert self.q_lens == self.kv_lens, "keys from earlier calls need a cache"
        else:
            assert self.slots is not None and self.tables is not None, "a cache needs slots and tables"
