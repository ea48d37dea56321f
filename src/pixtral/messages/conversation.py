"""The one form of a message between callers and tokenizers: messages of text parts, image parts and tool calls.

`normalize` turns every shape that clients of OpenAI and Hugging Face use into these frozen values. No image is opened
here: an image part holds its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from pixtral.errors import PromptError, nearest

_TEXT_KEYS = ("text", "content")
_IMAGE_KEYS = ("url", "path", "base64", "image", "image_url")
_PART_TYPES = ("text", "image", "image_url")


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image between text parts.

    `source` is whatever `pixtral.images.source.load_image` takes (address, path, bytes, image, array, tensor);
    None marks a place whose image is handed over separately.
    """

    source: object | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the assistant asked for; `arguments` is JSON text or the decoded object, as it was given."""

    name: str
    arguments: str | Mapping[str, object]
    id: str | None = None


Part = TextPart | ImagePart


def parse_part(part: object, where: str) -> Part:
    """A part of a message's content; `where` names it in a PromptError."""
    if isinstance(part, (TextPart, ImagePart)):
        return part
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, Mapping):
        raise PromptError(f"{where} is a {type(part).__name__}; expected a string or a mapping with a 'type'")
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type")
    if kind not in _PART_TYPES:
        hint = nearest(str(kind), _PART_TYPES)
        raise PromptError(f"{where} has type {kind!r}; {hint}")
    if kind == "text":
        known_keys(given, ("type", *_TEXT_KEYS), where)
        texts = [given[key] for key in _TEXT_KEYS if key in given]
        if len(texts) != 1 or not isinstance(texts[0], str):
            raise PromptError(f"{where} is a text part and needs one string under 'text' (or 'content'), got {given!r}")
        return TextPart(texts[0])
    return ImagePart(_image_source(given, str(kind), where))


def _image_source(given: Mapping[str, object], kind: str, where: str) -> object | None:
    known_keys(given, ("type", "detail", *_IMAGE_KEYS), where)
    keys = [key for key in _IMAGE_KEYS if key in given]
    if len(keys) > 1:
        raise PromptError(f"{where} says where its image is {len(keys)} times ({', '.join(keys)}); keep one of them")
    if not keys:
        if kind == "image_url":
            raise PromptError(f"{where} has type 'image_url' but no 'image_url'; give the address there")
        return None
    key, value = keys[0], given[keys[0]]
    if key == "image":
        return value
    if key == "image_url" and isinstance(value, Mapping):
        known_keys(value, ("url", "detail"), f"{where}, image_url")
        value = value.get("url")
    if isinstance(value, Path) and key in ("path", "url"):
        return value
    if not isinstance(value, (str, bytes)) or not value or (isinstance(value, bytes) and key != "base64"):
        raise PromptError(f"{where} has {key}={value!r}; expected a non-empty string")
    if key == "path":
        text = str(value)
        return Path(unquote(urlsplit(text).path)) if text.startswith("file://") else Path(text)
    if key == "base64":
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        return text if text.startswith("data:") else f"data:image/unknown;base64,{text}"
    return value


def parse_tool_call(call: object, where: str) -> ToolCall:
    """A tool call in OpenAI's form, or without the "function" around it."""
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise PromptError(f"{where} has a tool call of type {type(call).__name__}; expected a mapping with 'function'")
    given = {key: value for key, value in call.items() if value is not None}
    known_keys(given, ("id", "type", "index", "function", "name", "arguments"), f"{where}, tool call")
    function = given.get("function", given)
    name, arguments = (function.get(key) if isinstance(function, Mapping) else None for key in ("name", "arguments"))
    if not isinstance(name, str) or not isinstance(arguments, (str, Mapping)):
        raise PromptError(
            f"{where} has the tool call {call!r}; expected "
            '{"id": ..., "type": "function", "function": {"name": str, "arguments": JSON text or a mapping}}'
        )
    return ToolCall(name, arguments, optional_text(given.get("id"), f"{where}: tool call id"))


def optional_text(value: object, what: str) -> str | None:
    """The value, a string or None; anything else is a PromptError."""
    if value is not None and not isinstance(value, str):
        raise PromptError(f"{what} is {value!r}; expected a string")
    return value


def known_keys(given: Mapping[Any, object], known: tuple[str, ...], where: str) -> None:
    """Raise PromptError for the first key that is not known."""
    for key in given:
        if key not in known:
            raise PromptError(f"{where} has an unknown key {key!r}; {nearest(str(key), known)}")


ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `plain` says that the content came as one string; templates may render that differently."""

    role: str
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    plain: bool = field(default=False, compare=False)

    @property
    def text(self) -> str:
        """The text parts joined; images leave no trace."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The image parts in order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


def is_batch(conversation: object) -> bool:
    """Whether this is a list of conversations and not one conversation."""
    if not isinstance(conversation, (list, tuple)):
        return False
    return bool(conversation) and all(isinstance(item, (list, tuple)) for item in conversation)


def normalize(conversation: object) -> list[Message]:
    """The messages of one conversation.

    A message is a `Message`, a mapping, or an object with `model_dump()` (the OpenAI client's answers). Its content
    is a string or a list of parts: `{"type": "text", "text" | "content": str}`, `{"type": "image", "url" | "path" |
    "base64" | "image": ...}`, `{"type": "image_url", "image_url": str | {"url": str}}`, a bare string, or
    `{"type": "image"}` for an image handed over separately. Entries whose value is None count as absent.

    Raises:
        PromptError: an empty conversation, an unknown role, part type or key, a part without its payload.
    """
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise PromptError(
            f"a conversation is a list of messages, got {type(conversation).__name__}; "
            'write [{"role": "user", "content": "..."}]'
        )
    if not conversation:
        raise PromptError("the conversation is empty; it needs at least one message with a role and content")
    return [_message(item, index) for index, item in enumerate(conversation)]


def image_sources(messages: Sequence[Message]) -> list[object | None]:
    """The source of every image, in reading order; None for one that is handed over separately."""
    return [image.source for message in messages for image in message.images]


def first_missing(sources: Sequence[object | None]) -> int | None:
    """The place of the first image that has no source."""
    return next((place for place, source in enumerate(sources) if source is None), None)


def fill_images(messages: Sequence[Message], images: Sequence[object]) -> list[Message]:
    """The same messages with `images` put into the places that had none, in reading order.

    Raises:
        PromptError: another number of images than of empty places.
    """
    places = sum(source is None for source in image_sources(messages))
    if places != len(images):
        raise PromptError(
            f"the conversation has {places} image part(s) without a source but {len(images)} image(s) were given; "
            'pass one image for each {"type": "image"} part'
        )
    rest = iter(images)

    def fill(part: Part) -> Part:
        return ImagePart(next(rest)) if isinstance(part, ImagePart) and part.source is None else part

    return [
        Message(m.role, tuple(fill(part) for part in m.parts), m.tool_calls, m.tool_call_id, m.name, m.plain)
        for m in messages
    ]


def to_openai(messages: Sequence[Message], *, sources: bool = True) -> list[dict[str, Any]]:
    """The messages as dictionaries that templates and mistral-common read: text under "text", tools spelt out.

    Args:
        messages: from `normalize`.
        sources: write addresses as OpenAI does, `{"type": "image_url", "image_url": {"url": ...}}`, and other
            sources as `{"type": "image", "image": ...}`; False leaves a bare `{"type": "image"}` for every image.
    """
    return [_to_openai(message, sources) for message in messages]


def _to_openai(message: Message, sources: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role}
    if message.plain:
        result["content"] = message.text
    elif message.parts:
        result["content"] = [_part_to_openai(part, sources) for part in message.parts]
    if message.tool_calls:
        calls = [
            {"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls
        ]
        for call, made in zip(message.tool_calls, calls, strict=True):
            if call.id is not None:
                made["id"] = call.id
        result["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            result[key] = value
    return result


def _part_to_openai(part: Part, sources: bool) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if part.source is None or not sources:
        return {"type": "image"}
    if isinstance(part.source, str):
        return {"type": "image_url", "image_url": {"url": part.source}}
    return {"type": "image", "image": part.source}


def _message(item: object, index: int) -> Message:
    if isinstance(item, Message):
        return item
    where = f"message {index}"
    dump = getattr(item, "model_dump", None)
    if callable(dump):
        item = dump()
    if not isinstance(item, Mapping):
        raise PromptError(f"{where} is a {type(item).__name__}; expected a mapping with 'role' and 'content'")
    given = {key: value for key, value in item.items() if value is not None and not (key != "content" and value == [])}
    known_keys(given, _MESSAGE_KEYS, where)
    role = given.get("role")
    if role == "developer":  # OpenAI's newer word for the system prompt
        role = "system"
    if role not in ROLES:
        raise PromptError(f"{where} has role {role!r}; expected one of {', '.join(ROLES)}")
    where = f"{where} ({role})"
    calls = tuple(parse_tool_call(call, where) for call in given.get("tool_calls", ()))
    if calls and role != "assistant":
        raise PromptError(f"{where} has tool_calls; only an assistant message may call tools")
    if "content" not in given and not calls:
        raise PromptError(f"{where} has no content; give it a string or a list of parts")
    content = given.get("content", ())
    parts: tuple[Part, ...]
    if isinstance(content, str):
        parts = (TextPart(content),)
    elif isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
        parts = tuple(parse_part(part, f"{where}, part {number}") for number, part in enumerate(content))
    else:
        raise PromptError(f"{where} has content of type {type(content).__name__}; expected a string or a list of parts")
    if role in ("system", "assistant") and any(isinstance(part, ImagePart) for part in parts):
        raise PromptError(f"{where} contains an image; only user messages may contain images")
    return Message(
        role=cast(str, role),
        parts=parts,
        tool_calls=calls,
        tool_call_id=optional_text(given.get("tool_call_id"), f"{where}: tool_call_id"),
        name=optional_text(given.get("name"), f"{where}: name"),
        plain=isinstance(content, str),
    )
