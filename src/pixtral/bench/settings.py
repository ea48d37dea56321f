"""What is to be measured, and the result of one measurement."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from pixtral.bench.ceilings import Ceilings
from pixtral.bench.work import Work
from pixtral.engine.model import CACHE_DTYPES
from pixtral.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is to be measured.

    Attributes:
        images: sides of the square images, in pixels; empty for text alone.
        prompt: tokens of the text prompt.
        new: tokens after it that are timed one by one.
        contexts: tokens before them; the first is the one that is compared with others.
        memory_context: tokens in the cache when memory is looked at.
        compute_context: run all of a context through the network instead of drawing its keys and values.
        repeat: of every measurement; medians are reported.
        kv_cache: number format of keys and values: "bf16", "int8", or None for the model's own.
    """

    images: tuple[int, ...] = (512,)
    prompt: int = 1056
    new: int = 16
    contexts: tuple[int, ...] = (1100,)
    memory_context: int = 4096
    compute_context: bool = False
    repeat: int = 3
    kv_cache: str | None = None

    def check(self, room: int) -> None:
        """Refuse what cannot be measured.

        Args:
            room: tokens of the model's context.

        Raises:
            ConfigError: naming the setting.
        """
        if self.kv_cache not in (None, *CACHE_DTYPES):
            known = ", ".join(map(repr, CACHE_DTYPES))
            raise ConfigError(f"kv_cache is {self.kv_cache!r}; expected {known}, or None for the model's own")
        wanted = {"prompt": self.prompt, "memory context": self.memory_context}
        wanted |= {f"context of {context}": context for context in self.contexts}
        for name, length in wanted.items():
            if length + self.new > room:
                raise ConfigError(
                    f"a {name} with {length} tokens and {self.new} new ones exceeds the model's context of {room}; "
                    "choose a smaller one"
                )


@dataclasses.dataclass(frozen=True)
class Phase:
    """One thing that was timed.

    Attributes:
        runs: seconds of each run, as measured.
        seconds: the median, scaled to all layers where only some were there.
        work: that one run had to do, as measured.
        share: the median over the runs of least possible seconds / seconds.
        limit: what the least possible seconds are made of: "read", "int8", "bf16", or "mixed".
        tokens: that a run took in or gave, or None.
    """

    runs: tuple[float, ...]
    seconds: float
    work: Work
    share: float
    limit: str
    tokens: int | None = None

    @classmethod
    def of(
        cls, runs: list[tuple[float, Ceilings]], work: Work, *, tokens: int | None = None, extra: float = 0.0
    ) -> Phase:
        """From the seconds of the runs and the ceilings at their time.

        Args:
            extra: seconds of the layers that were left out.
        """
        seconds = [run for run, _ in runs]
        share = statistics.median(work.least_seconds(ceilings) / run for run, ceilings in runs)
        return cls(tuple(seconds), statistics.median(seconds) + extra, work, share, limit_of(work, runs[0][1]), tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """Of what it took in or gave."""
        return None if self.tokens is None else self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        measured = statistics.median(self.runs)
        facts: dict[str, Any] = {"seconds": round(self.seconds, 5), "runs": [round(run, 5) for run in self.runs]}
        if self.tokens is not None:
            facts |= {"tokens": self.tokens, "tokens_per_second": round(self.tokens / self.seconds, 3)}
        return facts | {
            "gb_s": round(self.work.bytes / measured / 1e9, 2),
            "top_s": round(self.work.operations / measured / 1e12, 4),
            "limit": self.limit,
            "share": round(self.share, 4),
        }


def limit_of(work: Work, ceilings: Ceilings) -> str:
    """Which ceiling a work meets first."""
    int8, bf16, read = work.int8 / ceilings.int8, work.bf16 / ceilings.bf16, work.bytes / ceilings.read
    if read >= int8 + bf16:
        return "read"
    if min(int8, bf16) > 0.25 * max(int8, bf16):
        return "mixed"
    return "int8" if int8 > bf16 else "bf16"
