"""Settings of a benchmark."""

from __future__ import annotations

import dataclasses

from pixtral.engine.model import CACHE_DTYPES
from pixtral.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        images: sides of the square images, in pixels; empty for text alone.
        prompt: tokens of the text prompt.
        new: tokens after it that are timed one by one.
        contexts: tokens before them; the first one is compared with other libraries.
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
        """Refuse settings that the model cannot run.

        Args:
            room: tokens of the model's context.

        Raises:
            ConfigError: with the name of the setting.
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
