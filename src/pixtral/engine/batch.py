"""A plan as tensors: which rows a forward pass has, where their keys and values go, whose logits are wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.plan import Plan
from pixtral.engine.request import Request
from pixtral.ops.attention import Packing


class SlotTable:
    """The slots of one request's tokens in order, kept as its blocks grow."""

    def __init__(self, blocks: list[int], block_size: int, device: torch.device) -> None:
        self.blocks = blocks  # the request's own list: a request that starts again has another one
        self._size = block_size
        self._slots = torch.empty(0, dtype=torch.int64, device=device)
        self._known = 0  # blocks that are in it
        self._in_a_row = True

    def upto(self, end: int) -> slice | Tensor:
        """The slots of the first `end` tokens; a slice where the blocks lie in a row."""
        self._follow()
        if self._in_a_row:
            first = self.blocks[0] * self._size
            return slice(first, first + end)
        return self._slots[:end]

    def between(self, start: int, end: int) -> Tensor:
        """The slots of the tokens from place `start` to `end`."""
        self._follow()
        return self._slots[start:end]

    def slot(self, place: int) -> int:
        """The slot of one token."""
        return self.blocks[place // self._size] * self._size + place % self._size

    def _follow(self) -> None:
        blocks, known = self.blocks, self._known
        if known == len(blocks):
            return
        if len(blocks) * self._size > len(self._slots):
            larger = self._slots.new_empty(max(len(blocks), 2 * known) * self._size)
            larger[: known * self._size] = self._slots[: known * self._size]
            self._slots = larger
        added = torch.tensor(blocks[known:])[:, None] * self._size + torch.arange(self._size)
        self._slots[known * self._size : len(blocks) * self._size] = added.flatten()
        self._in_a_row &= all(blocks[i] == blocks[0] + i for i in range(known, len(blocks)))
        self._known = len(blocks)


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens `start` to `end` of a request, and how many logits are wanted at their end."""

    request: Request
    start: int
    end: int
    num_logits: int


def spans_of(plan: Plan) -> list[Span]:
    """What the plan runs; logits are wanted behind a request's newest token, and behind its draft."""
    spans = []
    for request, count in plan.tokens.items():
        start, end = request.num_computed, request.num_computed + count
        spans.append(Span(request, start, end, max(0, end - max(request.length - 1, start))))
    return spans


def pack(spans: Sequence[Span], tables: Sequence[SlotTable], device: torch.device) -> tuple[Tensor, Packing]:
    """Positions (N,) of all tokens of the spans, and where they read and write."""
    places: list[int] = []
    parts: list[Tensor] = []
    single: list[int] = []  # slots of decoding requests, one each
    for span, table in zip(spans, tables, strict=True):
        places += range(span.start, span.end)
        if span.end - span.start == 1:
            single.append(table.slot(span.start))
            continue
        if single:
            parts.append(torch.tensor(single, device=device))
            single = []
        parts.append(table.between(span.start, span.end))
    if single:
        parts.append(torch.tensor(single, device=device))
    packing = Packing(
        tuple(span.end - span.start for span in spans),
        tuple(span.end for span in spans),
        True,
        parts[0] if len(parts) == 1 else torch.cat(parts),
        tuple(table.upto(span.end) for span, table in zip(spans, tables, strict=True)),
    )
    return torch.tensor(places, device=device), packing


def wanted_rows(spans: Sequence[Span]) -> list[int] | None:
    """Rows whose logits are wanted, of spans packed one after another; None if these are all."""
    rows: list[int] = []
    end = 0
    for span in spans:
        end += span.end - span.start
        rows += range(end - span.num_logits, end)
    return None if len(rows) == end else rows
