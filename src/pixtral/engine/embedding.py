"""Rows for the decoder: token embeddings, with features of pictures and given embeddings in their places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.batch import Span
from pixtral.engine.images import ImageCache
from pixtral.engine.network import PackedModel


class Embedder:
    """Tokens of any places of any requests to rows, pictures encoded before."""

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
        """Rows, and what stands in them, of the pictures that a span touches."""
        request, found = span.request, []
        for image in request.images:
            first, last = max(image.start, span.start), min(image.end, span.end)
            places = [at for at in range(first, last) if request.prompt_ids[at] == self.image_token]
            if places:
                skipped = request.prompt_ids[image.start : first].count(self.image_token)
                part = self.images.get(image.key)[skipped : skipped + len(places)]
                found.append(([at - span.start + begin for at in places], part))
        return found
