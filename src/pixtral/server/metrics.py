"""Prometheus metrics: the engine's statistics when they are read, and the times of requests when they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pixtral.engine.outputs import EngineStats, RequestOutput

_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
_EACH = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_WHOLE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """A registry of the server's own, so that nothing else in the process shows up or collides."""

    def __init__(self, stats: Callable[[], EngineStats], active: Callable[[], int]) -> None:
        """
        Args:
            stats: reads the statistics of the engine.
            active: reads the number of requests that wait or are answered.
        """
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(stats, active))
        kinds: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("pixtral_requests", "Requests that have ended.", ["path", "status"], **kinds)
        self.first_token = Histogram(
            "pixtral_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST,
            **kinds,
        )
        self.per_token = Histogram(
            "pixtral_time_per_token_seconds", "Mean time between an answer's tokens.", buckets=_EACH, **kinds
        )
        self.duration = Histogram(
            "pixtral_request_seconds", "From a request's arrival to its end.", buckets=_WHOLE, **kinds
        )
        self.images = Counter("pixtral_request_images", "Images in requests.", **kinds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestTimes:
    """Times of one request, observed when it has ended."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._tokens: dict[int, int] = {}

    def note(self, output: RequestOutput) -> None:
        """Tokens have been generated."""
        now, index = time.perf_counter(), output.index
        self._first.setdefault(index, now)
        self._last[index] = now
        self._tokens[index] = self._tokens.get(index, 0) + len(output.token_ids)

    def observe(self, metrics: Metrics) -> None:
        """The request has ended."""
        metrics.duration.observe(time.perf_counter() - self._started)
        if self._first:
            metrics.first_token.observe(min(self._first.values()) - self._started)
        for index, first in self._first.items():
            if self._tokens[index] > 1:
                metrics.per_token.observe((self._last[index] - first) / (self._tokens[index] - 1))


class _EngineCollector:
    """Reads the engine's statistics when the metrics are read."""

    def __init__(self, stats: Callable[[], EngineStats], active: Callable[[], int]) -> None:
        self._stats, self._active = stats, active

    def describe(self) -> list[Any]:
        """Nothing: the names are not known before the first read."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The fields of EngineStats."""
        stats = self._stats()
        gauges = {
            "requests_active": ("Requests that are waiting or being answered.", self._active()),
            "running": ("Answers that are being written.", stats.num_running),
            "waiting": ("Answers in the queue.", stats.num_waiting),
            "kv_blocks": ("Blocks for keys and values.", stats.num_blocks),
            "kv_blocks_free": ("Blocks that nobody uses; they may still be hit.", stats.num_free_blocks),
            "image_cache_bytes": ("Features of images that are kept.", stats.image_cache_bytes),
            "image_cache_limit_bytes": ("What they may take.", stats.image_cache_limit),
        }
        counters = {
            "steps": ("Forward passes of the decoder.", stats.steps),
            "prompt_tokens": ("Tokens of prompts.", stats.prompt_tokens),
            "cached_tokens": ("Tokens of prompts that the prefix cache had.", stats.cached_tokens),
            "generated_tokens": ("Tokens of answers.", stats.new_tokens),
            "preemptions": ("Times that an answer had to give its blocks back.", stats.preemptions),
            "images_encoded": ("Images that went through the vision tower.", stats.images_encoded),
            "image_cache_hits": ("Images whose features were there already.", stats.image_hits),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(f"pixtral_{name}", help, value)
        for name, (help, value) in counters.items():
            yield CounterMetricFamily(f"pixtral_{name}", help, value)
        finished = CounterMetricFamily("pixtral_finished", "Answers that have ended.", labels=["reason"])
        for reason in ("stop", "length", "abort", "error"):
            finished.add_metric([reason], stats.finished.get(reason, 0))
        yield finished
