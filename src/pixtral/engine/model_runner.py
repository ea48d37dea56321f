"""Runs the model: images through the tower, the scheduled tokens of a step through the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pixtral.engine.block_manager import BlockManager
from pixtral.engine.encoder_cache import EncoderCache
from pixtral.engine.model import PackedModel, PagedKVCache, cache_dtype
from pixtral.engine.request import ImageInput, Request, SchedulerOutput
from pixtral.ops.kv_cache import KVCache, Packing


@dataclasses.dataclass(frozen=True)
class Span:
    """Tokens `start` to `end` of a request, and how many logits are needed at their end."""

    request: Request
    start: int
    end: int
    num_logits: int


def spans_of(plan: SchedulerOutput) -> list[Span]:
    """The tokens that a step runs; logits are needed after a request's newest token and after its draft."""
    spans = []
    for request, count in plan.num_scheduled_tokens.items():
        start, end = request.num_computed, request.num_computed + count
        spans.append(Span(request, start, end, max(0, end - max(request.length - 1, start))))
    return spans


class Runner(Protocol):
    """What the engine core needs of a model runner."""

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Put features of images into the encoder cache."""
        ...

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(R, V): the logits that the spans need, in their order."""
        ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the content of blocks, (from, to) each."""
        ...

    def forget(self, request: Request) -> None:
        """Drop what is kept for a finished request."""
        ...


class ModelRunner:
    """Owns the key-value cache and runs spans of requests through the decoder."""

    def __init__(
        self,
        model: PackedModel,
        blocks: BlockManager,
        encoder_cache: EncoderCache,
        *,
        kv_cache: str | None = None,
        image_token: int | None = None,
    ) -> None:
        self.model = model
        self.blocks = blocks
        self.encoder_cache = encoder_cache
        self.cache = PagedKVCache(model.text_config, blocks, cache_dtype(kv_cache, model.dtype), model.device)
        self._image_token = image_token
        self._tables: dict[Request, SlotTable] = {}
        self.num_encoded = 0

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Encode images in one pass of the tower."""
        model = cast(Any, self.model)
        pixels = [image.pixels().to(model.device, model.dtype) for image in images]
        for image, features in zip(images, model.encode_images(pixels), strict=True):
            assert len(features) == image.num_features, (len(features), image)
            self.encoder_cache.put(image.key, features)
            self.num_encoded += 1

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(R, V): the logits that the spans need, in their order."""
        self.cache.follow()
        positions, packing = pack(spans, [self._table(span.request) for span in spans], self.model.device)
        embeds = embed_spans(self.model, spans, self.encoder_cache, self._image_token)
        return wanted_logits(self.model, embeds, positions, packing, self.cache, spans)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the content of blocks, (from, to) each."""
        self.cache.follow()
        for source, target in copies:
            self.cache.copy_block(source, target)

    def forget(self, request: Request) -> None:
        """Drop what is kept for a finished request."""
        self._tables.pop(request, None)

    def _table(self, request: Request) -> SlotTable:
        table = self._tables.get(request)
        if table is None or table.blocks is not request.blocks:
            table = self._tables[request] = SlotTable(request.blocks, self.blocks.block_size, self.model.device)
        return table


class SlotTable:
    """The slots of one request's tokens in order, extended as its block table grows."""

    def __init__(self, blocks: list[int], block_size: int, device: torch.device) -> None:
        self.blocks = blocks  # the request's own list; a request that was preempted gets another one
        self._size = block_size
        self._slots = torch.empty(0, dtype=torch.int64, device=device)
        self._known = 0  # blocks that are in it
        self._contiguous = True

    def upto(self, end: int) -> slice | Tensor:
        """The slots of the first `end` tokens; a slice where the blocks are contiguous."""
        self._follow()
        if self._contiguous:
            first = self.blocks[0] * self._size
            return slice(first, first + end)
        return self._slots[:end]

    def between(self, start: int, end: int) -> Tensor:
        """The slots of the tokens at positions `start` to `end`."""
        self._follow()
        return self._slots[start:end]

    def slot(self, position: int) -> int:
        """The slot of one token."""
        return self.blocks[position // self._size] * self._size + position % self._size

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
        self._contiguous &= all(blocks[i] == blocks[0] + i for i in range(known, len(blocks)))
        self._known = len(blocks)


def pack(spans: Sequence[Span], tables: Sequence[SlotTable], device: torch.device) -> tuple[Tensor, Packing]:
    """Positions (N,) of all tokens of the spans, and the slots that they read and write."""
    positions: list[int] = []
    parts: list[Tensor] = []
    single: list[int] = []  # slots of decoding requests, one each
    for span, table in zip(spans, tables, strict=True):
        positions += range(span.start, span.end)
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
    return torch.tensor(positions, device=device), packing


def embed_spans(
    model: PackedModel, spans: Sequence[Span], encoder_cache: EncoderCache | None, image_token: int | None
) -> Tensor:
    """(N, C): embeddings of the tokens of all spans, with image features and given embeddings in their positions."""
    parts: list[Tensor] = []
    ids: list[int] = []
    rows: list[int] = []  # of image features
    features: list[Tensor] = []
    begin = 0  # row of the span's first token

    def embed(ids: list[int]) -> Tensor:
        return model.embed(torch.tensor(ids, device=model.device))

    for span in spans:
        given, start = span.request.prompt_embeds, span.start
        if given is not None and start < len(given):
            if ids:
                parts.append(embed(ids))
                ids = []
            parts.append(given[start : span.end])
            start = min(span.end, len(given))
        if start < span.end:
            ids += span.request.ids_between(start, span.end)
            for image in span.request.images:
                first, last = max(image.start, span.start), min(image.end, span.end)
                prompt = span.request.prompt_ids
                places = [at for at in range(first, last) if prompt[at] == image_token]
                if places and encoder_cache is not None:
                    skipped = prompt[image.start : first].count(image_token)
                    rows += [at - span.start + begin for at in places]
                    features.append(encoder_cache.get(image.key)[skipped : skipped + len(places)])
        begin += span.end - span.start
    if ids:
        parts.append(embed(ids))
    embeds = parts[0] if len(parts) == 1 else torch.cat(parts)
    if rows:
        embeds[torch.tensor(rows, device=embeds.device)] = torch.cat(features).to(embeds.device, embeds.dtype)
    return embeds


def wanted_logits(
    model: PackedModel,
    embeds: Tensor,
    positions: Tensor,
    packing: Packing,
    cache: KVCache | None,
    spans: Sequence[Span],
) -> Tensor:
    """(R, V): the logits that the packed spans need."""
    rows: list[int] = []
    end = 0
    for span in spans:
        end += span.end - span.start
        rows += range(end - span.num_logits, end)
    wanted = None if len(rows) == end else torch.tensor(rows, dtype=torch.int64, device=embeds.device)
    hidden = model.forward_packed(embeds, positions, packing, cache, wanted)
    if len(hidden) == 0:  # a chunk of a prompt
        return hidden.new_empty(0, model.text_config.vocab_size)
    return model.logits(hidden)
