"""The options of a chat, and the engine's settings that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import torch

from pixtral.engine.model import cache_dtype
from pixtral.engine.sampling_params import DEFAULT_NGRAM, PromptLookup, SamplingParams
from pixtral.errors import GenerationError
from pixtral.images.source import ImageSource
from pixtral.messages import Message

DEFAULT_NEW_TOKENS = 512

Messages: TypeAlias = "str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]"
Conversations: TypeAlias = "list[str] | list[list[Any]]"
Images: TypeAlias = "ImageSource | Sequence[ImageSource] | None"


class ChatOptions(TypedDict, total=False):
    """Keyword arguments of `Assistant.chat` that have defaults.

    max_new_tokens: new tokens at most (512).
    temperature: None or 0 takes the likeliest token every time; above 0 it is drawn.
    top_p, top_k, min_p: draw among fewer tokens; given without a temperature they draw at temperature 1.
    repetition_penalty: above 1 discourages what was said already.
    seed: of the drawing; the same seed gives the same answer.
    stop: one string or several that end the answer; they are not part of it.
    kv_cache: how keys and values are kept, "bf16" or "int8"; None as `load` was told, or else in the model's dtype.
    prompt_lookup_num_tokens: check up to this many tokens at once that stood in the text before; the same answer,
        faster where it repeats its prompt. None as `load` was told, or else not.
    max_matching_ngram_size: how many of the newest tokens must have stood there, at first (2).
    """

    max_new_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    kv_cache: str | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """The options of a chat, decided and checked.

    Attributes:
        sampling: how tokens are sampled, and what ends the answer.
        kv_cache: "bf16", "int8", or None for the model's dtype.
        prompt_lookup: how drafts are made, if they are.
    """

    sampling: SamplingParams
    kv_cache: str | None
    prompt_lookup: PromptLookup | None


def resolve_options(options: ChatOptions) -> ChatSettings:
    """Decide everything; None is each option's neutral value, and options left out have their defaults.

    Raises:
        GenerationError: a value out of its range.
    """
    kv_cache = options.get("kv_cache")
    cache_dtype(kv_cache, torch.float32)  # refuses an unknown name
    return ChatSettings(_sampling(options), kv_cache, _prompt_lookup(options))


def _sampling(options: ChatOptions) -> SamplingParams:
    temperature = options.get("temperature")
    if temperature is None:
        temperature = 0.0 if all(options.get(name) is None for name in ("top_p", "top_k", "min_p")) else 1.0
    given: dict[str, Any] = {
        name: value
        for name in ("top_p", "top_k", "min_p", "repetition_penalty")
        if (value := options.get(name)) is not None
    }
    stop = options.get("stop")
    strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise GenerationError(f"stop is {stop!r}, expected strings of at least one character")
    limit = options.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    return SamplingParams(temperature=temperature, seed=options.get("seed"), max_tokens=limit, stop=strings, **given)


def _prompt_lookup(options: ChatOptions) -> PromptLookup | None:
    num_tokens, size = options.get("prompt_lookup_num_tokens"), options.get("max_matching_ngram_size")
    if num_tokens is not None:
        return PromptLookup(num_tokens, DEFAULT_NGRAM if size is None else size)
    if size is not None:
        raise GenerationError(
            f"max_matching_ngram_size is {size!r}, but nothing is looked up; add prompt_lookup_num_tokens=10"
        )
    return None
