"""Settings of the engine, checked (imports no torch)."""

from __future__ import annotations

import dataclasses
import numbers

from pixtral.engine.sampling_params import PromptLookup
from pixtral.errors import ConfigError

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Settings of an `Engine`, in vLLM's words where it has them.

    Attributes:
        max_model_len: tokens of prompt and answer together; None is what the model and the cache can hold.
        max_num_seqs: continuations that run at a time; more wait.
        max_num_batched_tokens: prompt and draft tokens of one step. More of them shorten the time to a first token and
            lengthen the time between tokens of other requests.
        kv_cache: number format of keys and values: "bf16", "int8", or None, the model's dtype.
        kv_cache_bytes: memory for keys and values; None lets it grow
            with what running requests need.
        image_cache_bytes: memory of the encoder cache, for features of images.
        max_encoder_tokens: patches that one step encodes; one image always fits.
        prefix_caching: reuse keys and values of prompts that begin alike.
        prompt_lookup: draft tokens from earlier text and check several in one forward pass.
        max_stretch: beside decoding requests, a step holds at most so many prompt tokens that it lasts this many times
            as long as without them; None leaves only `max_num_batched_tokens`.
    """

    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 2048
    kv_cache: str | None = None
    kv_cache_bytes: int | None = 1024 * MiB
    image_cache_bytes: int = 256 * MiB
    max_encoder_tokens: int = 4096
    prefix_caching: bool = True
    prompt_lookup: PromptLookup | None = None
    max_stretch: float | None = 2.0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_encoder_tokens"):
            _check(name, getattr(self, name), 1)
        if self.kv_cache_bytes is not None:
            _check("kv_cache_bytes", self.kv_cache_bytes, 1)
        _check("image_cache_bytes", self.image_cache_bytes, 0)
        if self.max_model_len is not None:
            _check("max_model_len", self.max_model_len, 2)
        if self.max_stretch is not None and not self.max_stretch > 1:
            raise ConfigError(f"max_stretch is {self.max_stretch!r}, expected a number above 1, or None")


def _check(name: str, value: object, low: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} is {value!r}, expected an integer of at least {low}")
