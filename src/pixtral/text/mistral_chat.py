"""Conversations to ids with mistral-common: messages become its request, its exceptions PromptErrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pixtral.errors import PromptError, Refused, nearest
from pixtral.messages import Message, fill_images, first_missing, image_sources, is_batch, normalize, to_openai
from pixtral.text.mistral_images import PLACEHOLDER, image_entries
from pixtral.text.tools import tool_schemas

if TYPE_CHECKING:
    import numpy as np

    from pixtral.images.limits import ImageLimits


# Arguments of MistralCommonTokenizer.apply_chat_template itself; others go into mistral-common's request.
OWN = {
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "keep_order",
    "images",
}


class ChatTokenizer(Protocol):
    """`MistralCommonTokenizer`, as far as it is needed here; `mistral.py` imports this module."""

    @property
    def tokenizer(self) -> Any:
        """mistral-common's."""
        ...

    @property
    def image_limits(self) -> ImageLimits | None:
        """Limits for the images that are loaded."""
        ...

    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of the ids."""
        ...

    def __call__(self, text: Any, **options: Any) -> Any:
        """Rows of ids, padded and truncated by the options."""
        ...


@dataclass(frozen=True)
class Encoded:
    """The ids of a conversation, and its images as pixels, each (3, H, W) float32."""

    ids: list[int]
    images: list[np.ndarray[Any, Any]]


def apply(
    tokenizer: ChatTokenizer,
    conversation: Any,
    *,
    images: Sequence[object] | None,
    tools: Sequence[object] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    tokenize: bool,
    keep_order: bool,
    rows: Mapping[str, Any],
    return_tensors: object,
    return_dict: bool,
    request: Mapping[str, object],
) -> Any:
    """`MistralCommonTokenizer.apply_chat_template`, which documents the arguments."""
    batched = is_batch(conversation)
    conversations = [normalize(item) for item in (conversation if batched else [conversation])]
    conversations = fill_all_images(conversations, images)
    check_opening(conversations, add_generation_prompt, continue_final_message)
    encoded = [
        encode(
            tokenizer,
            messages,
            tools=tools,
            continue_final_message=continue_final_message,
            request=request,
            keep_order=keep_order,
        )
        for messages in conversations
    ]
    if not tokenize:
        texts = [tokenizer.ids_to_text(item.ids, skip_special_tokens=False) for item in encoded]
        return texts if batched else texts[0]
    ids = [item.ids for item in encoded]
    result = tokenizer(ids if batched else ids[0], add_special_tokens=False, return_tensors=return_tensors, **rows)
    if not return_dict:
        return result["input_ids"]
    kind = None if return_tensors is None else str(getattr(return_tensors, "value", return_tensors))
    result.update(image_entries([image for item in encoded for image in item.images], kind))
    return result


def check_opening(
    conversations: Sequence[Sequence[Message]], add_generation_prompt: bool, continue_final_message: bool
) -> None:
    """Raise if the arguments exclude each other, or the last message is an answer already."""
    if add_generation_prompt and continue_final_message:
        raise PromptError("add_generation_prompt and continue_final_message exclude each other; choose one")
    if add_generation_prompt and any(messages[-1].role == "assistant" for messages in conversations):
        raise PromptError(
            "the last message is the assistant's, so there is no answer to open; use continue_final_message=True "
            "to go on with it, or end with a user message"
        )


def fill_all_images(conversations: list[list[Message]], images: Sequence[object] | None) -> list[list[Message]]:
    """The conversations with `images` in the image parts without a source, in reading order over all of them."""
    if images is None:
        return conversations
    joined = fill_images([message for messages in conversations for message in messages], images)
    rest = iter(joined)
    return [[next(rest) for _ in messages] for messages in conversations]


def encode(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[object] | None = None,
    continue_final_message: bool = False,
    request: Mapping[str, object] | None = None,
    placeholders: bool = False,
    keep_order: bool = False,
) -> Encoded:
    """The ids and pixels of one conversation.

    Args:
        keep_order: do not move an only image before the text.
        placeholders: open no image and write a single image token for each; without it every image part needs a
            source.

    Raises:
        PromptError: mistral-common refuses the conversation.
    """
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    known = {*ChatCompletionRequest.model_fields, "seed"} - {"messages", "tools"}
    for name in request or {}:
        if name not in known:
            raise Refused(f"apply_chat_template() got an unknown argument {name!r}; {nearest(name, known | OWN)}")
    sources = image_sources(messages)
    if sources and tokenizer.tokenizer.instruct_tokenizer.image_encoder is None:
        raise PromptError(f"the conversation has {len(sources)} image(s) but {tokenizer!r} knows no images")
    if not placeholders and (missing := first_missing(sources)) is not None:
        raise PromptError(
            f"image {missing} has no source; give the part 'url', 'path', 'base64' or 'image', or pass images=[...]"
        )
    images = [None] * len(sources) if placeholders else [_load(tokenizer, source) for source in sources]
    chat = [_mistral_form(message) for message in to_openai(messages, sources=False)]
    try:
        chat_request: Any = ChatCompletionRequest.from_openai(
            messages=chat,
            tools=_mistral_tools(tool_schemas(tools)),
            continue_final_message=continue_final_message,
            **(request or {}),
        )
        _replace_placeholders(chat_request, images)
        encoder = _in_order(tokenizer.tokenizer) if keep_order else tokenizer.tokenizer
        tokenized = encoder.encode_chat_completion(chat_request)
    except (MistralCommonException, ValueError, KeyError, TypeError, AssertionError, NotImplementedError) as error:
        raise PromptError(f"mistral-common refuses this conversation: {error}") from error
    return Encoded(list(tokenized.tokens), [] if placeholders else list(tokenized.images))


def _in_order(tokenizer: Any) -> Any:
    """A copy of mistral-common's tokenizer that does not move an image before the text."""
    instruct = _shallow_copy(tokenizer.instruct_tokenizer)
    encode_content = instruct.encode_user_content
    instruct.encode_user_content = lambda *args, **options: encode_content(
        *args, **{**options, "force_img_first": False}
    )
    tokenizer = _shallow_copy(tokenizer)
    tokenizer.instruct_tokenizer = instruct
    return tokenizer


def _shallow_copy(value: Any) -> Any:
    """Another object with the same attributes; `copy.copy` would read the tokenizer from its file again."""
    made = object.__new__(type(value))
    made.__dict__.update(value.__dict__)
    return made


def _load(tokenizer: ChatTokenizer, source: Any) -> Any:
    from pixtral.images.source import load_image

    limits = tokenizer.image_limits
    return load_image(source) if limits is None else load_image(source, limits=limits)


def _mistral_form(message: dict[str, Any]) -> dict[str, Any]:
    """An OpenAI message as mistral-common expects it: image parts are URLs, missing contents and ids are null."""
    content = message.get("content")
    if isinstance(content, list):
        placeholder = {"type": "image_url", "image_url": {"url": PLACEHOLDER}}
        content = [placeholder if part["type"] == "image" else part for part in content]
    result = {**message, "content": content}
    if message["role"] == "tool":
        result.setdefault("tool_call_id", None)
    elif "name" in result:  # OpenAI's name of the author, which Mistral's prompts do not contain
        del result["name"]
    return result


def _mistral_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The schemas without "return", which Transformers writes and older releases of mistral-common reject."""

    def function(tool: dict[str, Any]) -> Any:
        found = tool.get("function")
        return {k: v for k, v in found.items() if k != "return"} if isinstance(found, Mapping) else found

    return None if tools is None else [{**tool, "function": function(tool)} for tool in tools]


def _replace_placeholders(request: Any, images: list[Any]) -> None:
    """Replace the placeholders of a request by the images, in reading order; None leaves a placeholder."""
    from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk

    rest = iter(images)
    for message in request.messages:
        if isinstance(message.content, list):
            for place, chunk in enumerate(message.content):
                if isinstance(chunk, ImageURLChunk) and (image := next(rest)) is not None:
                    message.content[place] = ImageChunk(image=image)
