"""A question made ready for the model: messages put together, opened_images opened once, ids and pixels, all checked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from torch import Tensor

from pixtral.assistant.answer import ImageInfo
from pixtral.errors import ImageError, PromptError
from pixtral.images.geometry import Grid
from pixtral.images.limits import ImageLimits
from pixtral.images.source import load_image
from pixtral.messages import ImagePart, Message, Part, TextPart, fill_images, normalize, to_openai
from pixtral.models.vision import crop_images

if TYPE_CHECKING:
    from pixtral.processing import PixtralProcessor


@dataclass(frozen=True)
class PreparedPrompt:
    """What the model is asked.

    Attributes:
        messages: the conversation; opened_images stand in it as they were read. Empty for a raw prompt.
        ids: the prompt.
        pixels: one (3, H, W) float tensor per opened_image, in order.
        images: what became of them.
        tokenizer: reads the answer's tokens.
        started, seconds: when the work on it began (perf_counter) and how long it took.
    """

    messages: list[Message]
    ids: list[int]
    pixels: list[Tensor]
    images: tuple[ImageInfo, ...]
    tokenizer: Any
    started: float
    seconds: float

    @property
    def image_tokens(self) -> int:
        """Prompt tokens that opened_images take, breaks and ends included."""
        return sum(image.tokens for image in self.images)

    def continued(self, text: str) -> list[dict[str, Any]]:
        """The conversation with the answer behind it, or joined to the assistant's words that it goes on from."""
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
    """Messages, opened_images, ids and pixels; the model is not needed.

    Raises:
        PromptError: the conversation is empty or refused, or images and places for them do not match.
        ImageError: an image that cannot be had or read.
    """
    started = time.perf_counter()
    messages = with_images(compose(message, images, system), limits)
    goes_on = messages[-1].role == "assistant"
    batch = processor.apply_chat_template(
        to_openai(messages),
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **_size(max_image_size),
    )
    opened_images = [image.source for message in messages for image in message.images]
    return _prepared(processor, messages, opened_images, batch, started)


def prepare_raw(
    processor: PixtralProcessor,
    prompt: str,
    images: object | None,
    limits: ImageLimits | None,
    max_image_size: int | None,
) -> PreparedPrompt:
    """Ids and pixels of a prompt that is written out, with one "[IMG]" for each opened_image.

    Raises:
        PromptError: the prompt is empty, or has another number of "[IMG]" than there are opened_images.
        ImageError: an image that cannot be had or read.
    """
    started = time.perf_counter()
    if not prompt:
        raise PromptError("the prompt is empty; expected text, with one [IMG] for each image")
    sources = as_list(images)
    opened_images = [_open(source, number, len(sources), limits) for number, source in enumerate(sources)]
    batch = processor(text=prompt, images=opened_images or None, return_tensors="pt", **_size(max_image_size))
    return _prepared(processor, [], opened_images, batch, started)


def explained(prompt: PreparedPrompt, processor: PixtralProcessor) -> str:
    """The prompt as text, its opened_images as "{image 0: 7 x 9 patches, 70 tokens}"."""
    image_ids = set(processor.image_token_ids)
    parts: list[str] = []
    run: list[int] = []
    skip, number = 0, 0
    for token in prompt.ids:
        if skip:
            skip -= 1
        elif token in image_ids:
            image = prompt.images[number]
            grid = f"{{image {number}: {image.rows} x {image.cols} patches, {image.tokens} tokens}}"
            parts += [processor.decode(run), grid]
            run, skip, number = [], image.tokens - 1, number + 1
        else:
            run.append(token)
    return "".join([*parts, processor.decode(run)])


def _size(max_image_size: int | None) -> dict[str, Any]:
    return {} if max_image_size is None else {"size": {"longest_edge": max_image_size}}


def _prepared(
    processor: PixtralProcessor, messages: list[Message], opened_images: Sequence[object], batch: Any, started: float
) -> PreparedPrompt:
    pixels: list[Tensor] = crop_images(batch["pixel_values"], batch["image_sizes"]) if opened_images else []
    infos = tuple(
        _info(opened_image, image, processor.patch_size)
        for opened_image, image in zip(opened_images, pixels, strict=True)
    )
    ids: list[int] = batch["input_ids"][0].tolist()
    return PreparedPrompt(messages, ids, pixels, infos, processor.tokenizer, started, time.perf_counter() - started)


def compose(message: object, images: object | None, system: str | None) -> list[Message]:
    """The conversation of a question (opened_images first, then the text, as Mistral's models want it) or of messages."""
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


def _info(opened_image: object, pixels: Tensor, patch: int) -> ImageInfo:
    assert isinstance(opened_image, Image)
    resized_height, resized_width = pixels.shape[-2:]
    grid = Grid(resized_height // patch, resized_width // patch)
    return ImageInfo(
        opened_image.width, opened_image.height, resized_width, resized_height, grid.rows, grid.cols, grid.num_tokens
    )
