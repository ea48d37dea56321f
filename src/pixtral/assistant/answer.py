"""What an answer consists of: the text, what it cost in tokens and seconds, and how to go on from it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """One image as the model sees it.

    Attributes:
        width, height: of the image as it was given, upright, in pixels.
        resized_width, resized_height: after resizing, multiples of the patch.
        rows, cols: of the grid of patches.
        tokens: prompt tokens it takes: rows * cols image tokens and one break or end per row.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int
    rows: int
    cols: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens; the one that ends an answer counts.

    Attributes:
        prompt_tokens: of the whole prompt.
        image_tokens: those of images among them.
        completion_tokens: new ones.
        cached_tokens: of the prompt, computed by an earlier question.
    """

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        """For JSON, in OpenAI's words."""
        return {**dataclasses.asdict(self), "total_tokens": self.total_tokens}


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds of wall time.

    Attributes:
        load: reading the model, when it was loaded.
        prepare: opening and resizing images, building the prompt.
        image: the vision tower and the projector, all images that had not been encoded before.
        prompt: running the prompt up to the first new token.
        first_token: from the call to the first new token: prepare + image + prompt, for a stream also what passed
            before it was first read.
        per_token: mean over the new tokens after the first; 0 when there is only one. Time between reads of a stream
            does not count.
        total: from the call to the end of the answer.
    """

    load: float
    prepare: float
    image: float
    prompt: float
    first_token: float
    per_token: float
    total: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second after the first; 0 when there is only one."""
        return 1 / self.per_token if self.per_token else 0.0

    def to_dict(self) -> dict[str, float]:
        """For JSON, rounded to microseconds."""
        return {name: round(value, 6) for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the new text, without special tokens and without the stop string that ended it.
        finish_reason: "stop" (the model's own end, or a stop string), "length" (`max_new_tokens` or the context), or
            "abort" (a stream that was stopped).
        usage: tokens.
        timings: seconds.
        images: the images of the whole conversation as the model saw them, in order.
        messages: the whole conversation, this answer last; pass it back with a question added to go on. Images
            stand in it as they were read, so that nothing is fetched twice.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    images: tuple[ImageInfo, ...] = ()
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list, repr=False)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the messages, which hold images."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "images": [dataclasses.asdict(image) for image in self.images],
        }


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a question would take, known without running the model.

    Attributes:
        prompt_tokens, image_tokens: as in `Usage`.
        context_length: tokens that the model can hold, prompt and answer together.
        cache_bytes: memory for keys and values of the prompt and `max_new_tokens` new tokens.
        images: the images as the model would see them.
    """

    prompt_tokens: int
    image_tokens: int
    context_length: int
    cache_bytes: int
    images: tuple[ImageInfo, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the prompt leaves room for at least one new token."""
        return self.prompt_tokens < self.context_length
