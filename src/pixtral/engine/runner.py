"""The network at work: pictures through the tower, a step's tokens through the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pixtral.engine.batch import SlotTable, Span, pack, wanted_rows
from pixtral.engine.blocks import BlockPool
from pixtral.engine.embedding import Embedder
from pixtral.engine.images import ImageCache
from pixtral.engine.network import PackedModel, cache_dtype
from pixtral.engine.paged import PagedCache
from pixtral.engine.request import ImageInput, Request
from pixtral.ops.attention import Packing
from pixtral.ops.cache import KVCache


class Runs(Protocol):
    """What the engine asks of a runner."""

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Features of pictures into the cache."""
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
    """The slow twin of `Runner`: no cache, every sequence whole in every step. It takes no pictures."""

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
