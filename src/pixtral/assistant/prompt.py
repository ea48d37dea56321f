"""From a question to the engine's prompt: messages composed, images opened once, ids and pixels made, all checked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from pixtral.assistant.answer import ImageInfo
from pixtral.errors import ImageError, PromptError
from pixtral.images.limits import ImageLimits
from pixtral.images.source import load_image
from pixtral.messages import ImagePart, Message, Part, TextPart, fill_images, normalize, to_openai

if TYPE_CHECKING:
    from pixtral.processing import PixtralProcessor
    from pixtral.processing.encoded import EncodedPrompt


@dataclass(frozen=True)
class PreparedPrompt:
    """A question ready for the engine.

    Attributes:
        messages: the conversation, with its images opened; empty for a raw prompt.
        encoded: ids and pixels.
        images: sizes and tokens of the images.
        started, seconds: when preparing it began (perf_counter), and how long it took.
    """

    messages: list[Message]
    encoded: EncodedPrompt
    images: tuple[ImageInfo, ...]
    started: float
    seconds: float

    def continued(self, text: str) -> list[dict[str, Any]]:
        """The conversation with the answer added, or joined to the assistant's words that it continues."""
        if not self.messages:
            return []
        messages = list(self.messages)
        prefix = messages.pop().text if messages[-1].role == "assistant" else ""
        messages.append(Message("assistant", (TextPart(prefix + text),), plain=True))
        return to_openai(messages)


def prepare(
    processor: PixtralProcessor,
    message: object,
    images: object | None,
    system: str | None,
    limits: ImageLimits | None,
    max_image_size: int | None,
) -> PreparedPrompt:
    """Messages, images, ids and pixels of a question; the model is not needed.

    Raises:
        PromptError: the conversation is empty or refused, or images and places for them do not match.
        ImageError: an image that cannot be had or read.
    """
    started = time.perf_counter()
    messages = with_images(compose(message, images, system), limits)
    encoded = processor.encode(messages, max_image_size=max_image_size)
    opened = [image.source for message in messages for image in message.images]
    return _prepared(processor, messages, opened, encoded, started)


def prepare_raw(
    processor: PixtralProcessor,
    prompt: str,
    images: object | None,
    limits: ImageLimits | None,
    max_image_size: int | None,
) -> PreparedPrompt:
    """Ids and pixels of a prompt that is written out, with one "[IMG]" for each image.

    Raises:
        PromptError: the prompt is empty, or has another number of "[IMG]" than there are images.
        ImageError: an image that cannot be had or read.
    """
    started = time.perf_counter()
    if not prompt:
        raise PromptError("the prompt is empty; expected text, with one [IMG] for each image")
    sources = as_list(images)
    opened = [_open(source, number, len(sources), limits) for number, source in enumerate(sources)]
    encoded = processor.encode_text(prompt, opened, max_image_size=max_image_size)
    return _prepared(processor, [], opened, encoded, started)


def explained(prompt: PreparedPrompt, processor: PixtralProcessor) -> str:
    """The prompt as text, each image as "{image 0: 7 x 9 patches, 70 tokens}"."""
    parts: list[str] = []
    end = 0
    ids = list(prompt.encoded.ids)
    for number, (image, info) in enumerate(zip(prompt.encoded.images, prompt.images, strict=True)):
        grid = f"{{image {number}: {info.rows} x {info.cols} patches, {info.tokens} tokens}}"
        parts += [processor.decode(ids[end : image.start]), grid]
        end = image.end
    return "".join([*parts, processor.decode(ids[end:])])


def _prepared(
    processor: PixtralProcessor,
    messages: list[Message],
    opened: Sequence[object],
    encoded: EncodedPrompt,
    started: float,
) -> PreparedPrompt:
    side = processor.patch_size * processor.spatial_merge_size
    infos = []
    for image, grid in zip(opened, encoded.grids, strict=True):
        assert isinstance(image, Image)
        height, width = grid.size(side)
        infos.append(ImageInfo(image.width, image.height, width, height, grid.rows, grid.cols, grid.num_tokens))
    return PreparedPrompt(messages, encoded, tuple(infos), started, time.perf_counter() - started)


def compose(message: object, images: object | None, system: str | None) -> list[Message]:
    """The conversation of a question (images first, then the text, as Mistral's models want it) or of messages."""
    given = as_list(images)
    if isinstance(message, str):
        if not message.strip():
            raise PromptError("the question is empty; write what you want to know")
        parts: tuple[Part, ...] = (*map(ImagePart, given), TextPart(message))
        messages = [Message("user", parts, plain=not given)]
    else:
        messages = fill_images(normalize([message] if isinstance(message, (Message, Mapping)) else message), given)
    if system is not None:
        if any(one.role == "system" for one in messages):
            raise PromptError("there is a system message among the messages and system= besides; keep one of them")
        messages = [Message("system", (TextPart(system),), plain=True), *messages]
    return messages


def as_list(images: object | None) -> list[object]:
    """One image or several as a list."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def with_images(messages: Sequence[Message], limits: ImageLimits | None) -> list[Message]:
    """The same messages with every image opened."""
    total = sum(len(message.images) for message in messages)
    opened: list[Message] = []
    number = 0
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if isinstance(part, ImagePart):
                part = ImagePart(_open(part.source, number, total, limits))
                number += 1
            parts.append(part)
        opened.append(replace(message, parts=tuple(parts)))
    return opened


def _open(source: Any, number: int, total: int, limits: ImageLimits | None) -> object:
    try:
        return load_image(source, limits=limits or ImageLimits())
    except ImageError as error:
        if total == 1:
            raise
        raise type(error)(f"image {number} of {total} (counted from 0): {error}") from error
