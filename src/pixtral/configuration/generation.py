"""How to generate: the fields of `generation_config.json` that generation implements."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from pixtral.configuration.base import GENERIC_KEYS, Config

# Fields of Transformers' file that ask for something else than this package does; accepted only when they ask for
# nothing (null or the neutral value), so that a file is either honoured or refused.
NEUTRAL_FIELDS = GENERIC_KEYS - {
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "max_length",
    "min_length",
    "repetition_penalty",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
} | {"_from_model_config", "cache_implementation", "output_logits", "trust_remote_code"}


@dataclasses.dataclass
class GenerationConfig(Config):
    """Defaults of generate(); every field can be overridden by an argument of the same name.

    None means "as Transformers does when nothing is said": greedy, 20 new tokens, temperature 1, top_k 50, top_p 1.
    """

    file_name: ClassVar[str] = "generation_config.json"
    ignored_keys: ClassVar[frozenset[str]] = NEUTRAL_FIELDS

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int | None = None
    output_scores: bool | None = None
    return_dict_in_generate: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
