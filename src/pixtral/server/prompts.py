"""Prompts for the engine: token ids and images of a conversation, or of a text, made in threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pixtral.errors import PromptError
from pixtral.messages import ImagePart, Message, Part, TextPart, ToolCall
from pixtral.processing.encoded import EncodedPrompt
from pixtral.processing.prompts import text_to_ids
from pixtral.server import protocol_chat as chat
from pixtral.server.errors import ApiError
from pixtral.server.images import ImageUrl
from pixtral.structured.tools import check_history

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixtral.processing import PixtralProcessor
    from pixtral.server.state import ServerState
    from pixtral.text.protocol import Tokenizer

_CHARACTERS = 8  # for each token of the context; ordinary text has 2 to 5
_CUT = 64  # tokens that cutting a text may add


async def prompt_of(
    state: ServerState, messages: Sequence[chat.Message], tools: Sequence[dict[str, Any]] | None = None
) -> EncodedPrompt:
    """The prompt of a conversation.

    Raises:
        ApiError: an image that cannot be used.
        PixtralError: a conversation that cannot be used.
    """
    image_urls: list[ImageUrl] = []
    ours = [_message(message, f"messages[{number}]", image_urls) for number, message in enumerate(messages)]
    ours = check_history(ours)
    size = state.settings.max_image_size
    texts = [part.text for message in ours for part in message.parts if isinstance(part, TextPart)]

    def encode() -> EncodedPrompt:
        _check_length(texts, state.processor.tokenizer, state.max_model_len, "messages")
        return state.processor.encode(_with_images(ours, images), tools=tools or None, max_image_size=size)

    async with state.image_loader.loaded(image_urls) as images:
        state.metrics.images.inc(sum(map(len, images)))
        return await state.in_thread(encode)


def raw_prompt(
    processor: PixtralProcessor, prompt: str | list[int], add_special_tokens: bool, context: int
) -> tuple[int, ...]:
    """The token ids of a raw prompt; control tokens written in it are parsed as such.

    Raises:
        PromptError: it has an image token.
        ApiError: it is far longer than the context.
    """
    if isinstance(prompt, str):
        _check_length([prompt], processor.tokenizer, context, "prompt")
    ids = tuple(prompt if isinstance(prompt, list) else text_to_ids(processor.tokenizer, prompt, add_special_tokens))
    if processor.image_token_id in ids:
        raise PromptError("the prompt has an [IMG] token, but no image can come with it; use /v1/chat/completions")
    return ids


def check_room(prompt: EncodedPrompt, context: int, max_tokens: int | None = None, *, param: str = "messages") -> None:
    """Refuse a prompt that leaves no room for its answer."""
    length = len(prompt.ids)
    image_tokens = prompt.num_image_tokens
    share = f" ({image_tokens} of them for {len(prompt.images)} image(s))" if image_tokens else ""
    if length >= context or length + (max_tokens or 1) > context:
        wanted = f" and {max_tokens} more are asked for" if max_tokens and length < context else ""
        raise ApiError(
            400,
            f"the prompt has {length} tokens{share}{wanted}, but the context is {context} tokens, the answer "
            "included; shorten the text, use detail 'low' or fewer images, or ask for fewer tokens",
            param="max_tokens" if wanted else param,
            code="context_length_exceeded",
        )


def _check_length(texts: Iterable[str], tokenizer: Tokenizer, context: int, param: str) -> None:
    """Refuse texts whose first characters, 8 for each token of the context, have more tokens than the context.

    Raises:
        ApiError: they have. A text that passes may still be too long, which is seen when all of it has been read.
    """
    room, beginnings = context * _CHARACTERS, []
    for text in texts:
        beginnings.append(text[:room])
        room -= len(text)
        if room < 0:
            break
    else:
        return
    count = 0
    for text in beginnings:
        count += len(tokenizer.ordinary_ids(text))
        if count > context + _CUT:
            raise ApiError(
                400,
                f"the text has more than {count:,} tokens, but the context is {context:,} tokens, the answer included; "
                "shorten the text",
                param=param,
                code="context_length_exceeded",
            )


def _with_images(messages: Sequence[Message], images: Sequence[Sequence[Image]]) -> list[Message]:
    """The messages with their images; a PDF gives one for each page."""
    rest = iter(images)
    return [
        dataclasses.replace(
            message,
            parts=tuple(
                one
                for part in message.parts
                for one in (map(ImagePart, next(rest)) if isinstance(part, ImagePart) else (part,))
            ),
        )
        for message in messages
    ]


def _message(message: chat.Message, where: str, image_urls: list[ImageUrl]) -> Message:
    """One message with empty image parts, whose URLs are appended to `image_urls`."""
    content = message.content
    parts: list[Part] = []
    if isinstance(content, str):
        parts.append(TextPart(content))
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, chat.TextPart):
            parts.append(TextPart(part.text))
        elif isinstance(part, chat.RefusalPart):
            parts.append(TextPart(part.refusal))
        else:
            image_urls.append(_image_url(part, f"{where}.content[{number}]"))
            parts.append(ImagePart())
    calls: tuple[ToolCall, ...] = ()
    if isinstance(message, chat.AssistantMessage):
        calls = tuple(ToolCall(one.function.name, one.function.arguments, one.id) for one in message.tool_calls or ())
        if not calls and content is None:
            if message.refusal is None:
                raise ApiError(400, f"{where} has neither content nor tool_calls; give one of them", param=where)
            parts.append(TextPart(message.refusal))
    return Message(
        "system" if message.role == "developer" else message.role,
        tuple(parts),
        calls,
        message.tool_call_id if isinstance(message, chat.ToolMessage) else None,
        message.name,
        plain=isinstance(content, str),
    )


def _image_url(part: chat.ImagePart | chat.FilePart, where: str) -> ImageUrl:
    if isinstance(part, chat.FilePart):
        return ImageUrl(part.file.file_data, "auto", f"{where}.file.file_data")
    if isinstance(part.image_url, str):
        return ImageUrl(part.image_url, "auto", f"{where}.image_url")
    return ImageUrl(part.image_url.url, part.image_url.detail or "auto", f"{where}.image_url.url")
