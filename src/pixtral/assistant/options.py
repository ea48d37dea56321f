"""How to answer: the options of a chat, and what the engine makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from pixtral.engine.sampling import SamplingParams
from pixtral.errors import GenerationError
from pixtral.images.source import ImageSource
from pixtral.messages import Message

DEFAULT_NEW_TOKENS = 512

Messages: TypeAlias = "str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]"
Images: TypeAlias = "ImageSource | Sequence[ImageSource] | None"


class ChatOptions(TypedDict, total=False):
    """How to answer; the keyword arguments of `Assistant.chat` that have defaults.

    max_new_tokens: new tokens at most (512).
    temperature: None or 0 takes the likeliest token every time; above 0 it is drawn.
    top_p, top_k, min_p: draw among fewer tokens; given without a temperature they draw at temperature 1.
    repetition_penalty: above 1 discourages what was said already.
    seed: of the drawing; the same seed gives the same answer.
    stop: one string or several that end the answer; they are not part of it.
    """

    max_new_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, several or none as a tuple."""
    strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise GenerationError(f"stop is {stop!r}, expected strings of at least one character")
    return strings


def sampling(options: ChatOptions, ends: tuple[int, ...]) -> SamplingParams:
    """The options of a chat as the engine's; None is each option's neutral value.

    Args:
        options: those left out have their defaults.
        ends: tokens that end an answer.

    Raises:
        GenerationError: a value out of its range.
    """
    temperature = options.get("temperature")
    if temperature is None:
        temperature = 0.0 if all(options.get(name) is None for name in ("top_p", "top_k", "min_p")) else 1.0
    given: dict[str, Any] = {
        name: value
        for name in ("top_p", "top_k", "min_p", "repetition_penalty")
        if (value := options.get(name)) is not None
    }
    limit = options.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    return SamplingParams(
        temperature=temperature, seed=options.get("seed"), max_tokens=limit, stop_token_ids=ends, **given
    )
