"""Image features by content, under a limit of bytes: each image is encoded once (imports no torch)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from pixtral.engine.request import ImageInput, Request, SchedulerConfig, SchedulerOutput


@dataclasses.dataclass
class _Entry:
    nbytes: int
    features: Any = None  # None until the tower has run
    pins: int = 0


class EncoderCache:
    """Evicts the least recently used features; pinned ones stay.

    `reserve` makes an entry before the image is encoded, so that its room is kept; `put` fills it.
    """

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: bytes. One image is kept even if it alone is larger.
        """
        self.limit = limit
        self.nbytes = 0
        self._entries: collections.OrderedDict[bytes, _Entry] = collections.OrderedDict()
        self._unpinned = 0  # bytes

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, key: bytes, nbytes: int) -> bool:
        """Make room for an image and pin it; False if pinned entries leave no room."""
        assert key not in self._entries
        if self.nbytes - self._unpinned + nbytes > self.limit and self.nbytes > self._unpinned:
            return False
        for old in [k for k, entry in self._entries.items() if not entry.pins]:
            if self.nbytes + nbytes <= self.limit:
                break
            self._drop(old)
        self._entries[key] = _Entry(nbytes, pins=1)
        self.nbytes += nbytes
        return True

    def put(self, key: bytes, features: Any) -> None:
        """Store the features of a reserved image."""
        self._entries[key].features = features

    def get(self, key: bytes) -> Any:
        """The features of a pinned image."""
        entry = self._entries[key]
        assert entry.pins and entry.features is not None, key
        return entry.features

    def pin(self, key: bytes) -> None:
        """Keep an image until it has been unpinned as often as it was pinned."""
        entry = self._entries[key]
        if not entry.pins:
            self._unpinned -= entry.nbytes
        entry.pins += 1
        self._entries.move_to_end(key)

    def unpin(self, key: bytes) -> None:
        """Allow the image to be evicted; it is dropped at once if it was never encoded."""
        entry = self._entries[key]
        entry.pins -= 1
        assert entry.pins >= 0, key
        if not entry.pins:
            self._unpinned += entry.nbytes
            self._entries.move_to_end(key)
            if entry.features is None:
                self._drop(key)

    def clear(self) -> None:
        """Drop everything that is not pinned."""
        for key in [key for key, entry in self._entries.items() if not entry.pins]:
            self._drop(key)

    def check(self, pins: Mapping[bytes, int]) -> None:
        """Assert that these are the pins, and that the sums and the limit hold."""
        assert {key: entry.pins for key, entry in self._entries.items() if entry.pins} == dict(pins)
        assert self.nbytes == sum(entry.nbytes for entry in self._entries.values())
        free = [entry for entry in self._entries.values() if not entry.pins]
        assert self._unpinned == sum(entry.nbytes for entry in free)
        assert self.nbytes <= self.limit or len(self._entries) == 1, "over the limit only for one large image"

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        assert not entry.pins
        self.nbytes -= entry.nbytes
        self._unpinned -= entry.nbytes


class EncoderCacheManager:
    """Plans which images a step encodes, and how many tokens of a request can run with the images there are."""

    def __init__(self, cache: EncoderCache, config: SchedulerConfig) -> None:
        self.cache = cache
        self.config = config
        self.num_hits = 0

    def fit(self, request: Request, count: int, plan: SchedulerOutput) -> int:
        """How many of the next `count` tokens come before the first image for which there is no room.

        The images of these tokens are pinned, and encoded in this step if they are not cached. An image is needed from
        its first token to its last; a step may end anywhere between them.
        """
        start = request.num_computed
        for image in request.images:
            if image.end <= start or image.key in request.pinned:
                continue
            if image.start >= start + count:
                break
            if plan.encoder_full or not self._take(image, plan):
                plan.encoder_full = True
                return max(image.start - start, 0)
            request.pinned.add(image.key)
        return count

    def release(self, request: Request) -> None:
        """Unpin the images of a request except the one that it has run a part of.

        So a request that waits for room for an image pins no other, and requests cannot block each other.
        """
        if request.pinned:
            position = request.num_computed
            needed = {image.key for image in request.images if image.start < position < image.end}
            for key in request.pinned - needed:
                self.cache.unpin(key)
            request.pinned &= needed

    def release_all(self, request: Request) -> None:
        """Unpin all images of a request."""
        for key in request.pinned:
            self.cache.unpin(key)
        request.pinned.clear()

    def _take(self, image: ImageInput, plan: SchedulerOutput) -> bool:
        if image.key in self.cache:
            self.cache.pin(image.key)
            self.num_hits += 1
            return True
        features = sum(other.num_features for other in plan.encode)
        if plan.encode and features + image.num_features > self.config.max_encoder_tokens:
            return False
        if not self.cache.reserve(image.key, image.num_features * self.config.feature_bytes):
            return False
        plan.encode.append(image)
        return True
