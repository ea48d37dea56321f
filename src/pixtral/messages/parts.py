"""The parts of a message (text, image, tool call), and the shapes in which clients write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pixtral.errors import PromptError, nearest

_TEXT_KEYS = ("text", "content")
_IMAGE_KEYS = ("url", "path", "base64", "image", "image_url")
_PART_TYPES = ("text", "image", "image_url")


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in its place among the text.

    `source` is whatever `pixtral.images.source.load_image` takes (address, path, bytes, picture, array, tensor);
    None marks a place whose picture is handed over separately.
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
