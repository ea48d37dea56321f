"""The network at work: images through the tower, a step's tokens through the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pixtral.engine.block_manager import BlockPool
from pixtral.engine.encoder_cache import ImageCache
from pixtral.engine.model import PackedModel, PagedCache, cache_dtype
from pixtral.engine.request import ImageInput, Plan, Request
from pixtral.ops.kv_cache import KVCache, Packing

# FOLDED pixtral.engine.model_runner: A plan as tensors: which rows a forward pass has, where their keys and values go, whose logits are wanted.


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


# FOLDED pixtral.engine.model_runner: Rows for the decoder: token embeddings, with features of images and given embeddings in their places.


class Embedder:
    """Tokens of any places of any requests to rows, images encoded before."""

    def __init__(self, model: PackedModel, images: ImageCache, image_token: int | None) -> None:
        self.model = model
        self.images = images
        self.image_token = image_token

    def rows(self, spans: Sequence[Span]) -> Tensor:
        """(N, C): the tokens of all spans, one after another."""
        parts: list[Tensor] = []
        ids: list[int] = []
        features: list[tuple[list[int], Tensor]] = []
        begin = 0  # of the span among the rows
        for span in spans:
            given, start = span.request.prompt_embeds, span.start
            if given is not None and start < len(given):
                if ids:
                    parts.append(self._embed(ids))
                    ids = []
                parts.append(given[start : span.end])
                start = min(span.end, len(given))
            if start < span.end:
                ids += span.request.ids_between(start, span.end)
                features += self._features(span, begin)
            begin += span.end - span.start
        if ids:
            parts.append(self._embed(ids))
        embeds = parts[0] if len(parts) == 1 else torch.cat(parts)
        if features:
            rows = [row for places, _ in features for row in places]
            found = torch.cat([part for _, part in features])
            embeds[torch.tensor(rows, device=embeds.device)] = found.to(embeds.device, embeds.dtype)
        return embeds

    def _embed(self, ids: list[int]) -> Tensor:
        return self.model.embed(torch.tensor(ids, device=self.model.device))

    def _features(self, span: Span, begin: int) -> list[tuple[list[int], Tensor]]:
        """Rows, and what stands in them, of the images that a span touches."""
        request, found = span.request, []
        for image in request.images:
            first, last = max(image.start, span.start), min(image.end, span.end)
            places = [at for at in range(first, last) if request.prompt_ids[at] == self.image_token]
            if places:
                skipped = request.prompt_ids[image.start : first].count(self.image_token)
                part = self.images.get(image.key)[skipped : skipped + len(places)]
                found.append(([at - span.start + begin for at in places], part))
        return found


class Runs(Protocol):
    """What the engine asks of a runner."""

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Features of images into the cache."""
        ...

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(R, V): the logits that the spans want, in their order."""
        ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """(from, to): a prompt goes on in several ways."""
        ...

    def forget(self, request: Request) -> None:
        """The request has ended."""
        ...


class Runner:
    """Owns keys and values; runs spans of requests through the decoder."""

    def __init__(
        self,
        model: PackedModel,
        blocks: BlockPool,
        images: ImageCache,
        *,
        kv_cache: str | None = None,
        image_token: int | None = None,
    ) -> None:
        self.model = model
        self.blocks = blocks
        self.images = images
        self.cache = PagedCache(model.text_config, blocks, cache_dtype(kv_cache, model.dtype), model.device)
        self._embedder = Embedder(model, images, image_token)
        self._tables: dict[Request, SlotTable] = {}
        self.num_encoded = 0

    def encode(self, images: Sequence[ImageInput]) -> None:
        """All of them in one pass of the tower."""
        model = cast(Any, self.model)
        pixels = [image.pixels().to(model.device, model.dtype) for image in images]
        for image, features in zip(images, model.encode_images(pixels), strict=True):
            assert len(features) == image.num_features, (len(features), image)
            self.images.put(image.key, features)
            self.num_encoded += 1

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(R, V): the logits that the spans want, in their order."""
        self.cache.follow()
        positions, packing = pack(spans, [self._table(span.request) for span in spans], self.model.device)
        return _logits(self.model, self._embedder.rows(spans), positions, packing, self.cache, wanted_rows(spans))

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """(from, to): a prompt goes on in several ways."""
        self.cache.follow()
        for source, target in copies:
            self.cache.copy_block(source, target)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._tables.pop(request, None)

    def _table(self, request: Request) -> SlotTable:
        table = self._tables.get(request)
        if table is None or table.blocks is not request.blocks:
            table = self._tables[request] = SlotTable(request.blocks, self.blocks.block_size, self.model.device)
        return table


class Recompute:
    """The slow twin of `Runner`: no cache, every sequence whole in every step. It takes no images."""

    def __init__(self, model: PackedModel, images: ImageCache) -> None:
        self.model = model
        self._embedder = Embedder(model, images, None)

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Prompts come embedded."""
        assert not images

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(R, V): as of `Runner`. Spans that want no logits are left for later."""
        whole = [Span(span.request, 0, span.end, span.num_logits) for span in spans if span.num_logits]
        lengths = [span.end for span in whole]
        if not whole:
            return torch.empty(0, self.model.text_config.vocab_size, device=self.model.device)
        positions = torch.cat([torch.arange(length, device=self.model.device) for length in lengths])
        packing = Packing.full(lengths, causal=True)
        return _logits(self.model, self._embedder.rows(whole), positions, packing, None, wanted_rows(whole))

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """There is nothing to copy."""

    def forget(self, request: Request) -> None:
        """There is nothing to forget."""


def _logits(
    model: PackedModel,
    embeds: Tensor,
    positions: Tensor,
    packing: Packing,
    cache: KVCache | None,
    rows: list[int] | None,
) -> Tensor:
    """(R, V) of these rows, or of all."""
    wanted = None if rows is None else torch.tensor(rows, dtype=torch.int64, device=embeds.device)
    hidden = model.forward_packed(embeds, positions, packing, cache, wanted)
    if len(hidden) == 0:  # a part of a prompt
        return hidden.new_empty(0, model.text_config.vocab_size)
    return model.logits(hidden)
