"""Tool calls and their results in a conversation: whether they fit together, and names that Mistral's prompts take."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import string
from collections.abc import Mapping, Sequence

from pixtral.errors import StructureError
from pixtral.messages import Message, ToolCall
from pixtral.structured.calls import ID_LENGTH

_ALPHABET = string.digits + string.ascii_letters


def check_history(messages: Sequence[Message]) -> list[Message]:
    """The conversation, ready for a prompt.

    Every call is followed by its result before anybody else speaks. Names of calls that are not nine letters or digits
    (other servers have longer ones) are replaced by such, calls and results alike. Words beside calls are left out:
    Mistral's prompts have no place for them.

    Raises:
        StructureError: a result without its call, a call without its result or with two, a name that is used twice,
            arguments that are no JSON object.
    """
    checked: list[Message] = []
    waiting: dict[str, str] = {}  # names of calls without result yet, as they came and as the prompt has them
    answered: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            message = _result(message, waiting, answered, where)
        elif waiting:
            raise StructureError(
                f"{where} has role {message.role!r}, but the tool call(s) {', '.join(map(repr, waiting))} before it "
                "have no result yet; put a message with role 'tool' and that tool_call_id there",
                f"{where}.role",
            )
        elif message.tool_calls:
            answered = set()
            message = _calls(message, waiting, where)
        checked.append(message)
    if waiting:
        raise StructureError(
            f"the conversation ends with the tool call(s) {', '.join(map(repr, waiting))} without result; add a "
            "message with role 'tool' and that tool_call_id for each",
            "messages",
        )
    return checked


def prompt_id(call_id: str) -> str:
    """A call's name as prompts take it: nine letters or digits stay, anything else becomes such."""
    if len(call_id) == ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    letters = ""
    for _ in range(ID_LENGTH):
        number, place = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[place]
    return letters


def _calls(message: Message, waiting: dict[str, str], where: str) -> Message:
    calls: list[ToolCall] = []
    for number, call in enumerate(message.tool_calls):
        here = f"{where}.tool_calls[{number}]"
        if not call.id:
            raise StructureError(f"{here} has no id; give it the one that the server sent", f"{here}.id")
        if call.id in waiting:
            raise StructureError(f"{here}.id is {call.id!r} again; every call needs its own", f"{here}.id")
        if not call.name:
            raise StructureError(f"{here}.function.name is empty; give it the tool's name", f"{here}.function.name")
        waiting[call.id] = prompt_id(call.id)
        calls.append(ToolCall(call.name, _arguments(call.arguments, here), waiting[call.id]))
    return dataclasses.replace(message, parts=(), tool_calls=tuple(calls), plain=False)


def _arguments(arguments: str | Mapping[str, object], where: str) -> str:
    """As JSON text, which is what templates write as it stands."""
    param = f"{where}.function.arguments"
    found: object = arguments
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise StructureError(
                f"{param} is not JSON ({error}); send it back as the server wrote it", param
            ) from error
    if not isinstance(found, Mapping):
        raise StructureError(f"{param} is JSON of type {type(found).__name__}; expected an object", param)
    text = arguments.strip() if isinstance(arguments, str) else ""
    return text or json.dumps(found, ensure_ascii=False)  # what the model wrote is in the prefix cache


def _result(message: Message, waiting: dict[str, str], answered: set[str], where: str) -> Message:
    name = message.tool_call_id
    if name is None:
        raise StructureError(f"{where} has role 'tool' but no tool_call_id; name the call it answers", where)
    if name not in waiting:
        param = f"{where}.tool_call_id"
        if name in answered:
            raise StructureError(f"{param} is {name!r}, a call that has its result already; send one for each", param)
        known = f"the calls before it are {', '.join(map(repr, waiting))}" if waiting else "there is no call before it"
        raise StructureError(f"{param} is {name!r}, which no call has; {known}", param)
    if message.images:
        raise StructureError(
            f"{where} is a tool's result with a picture; describe it in text, or show it in a user message", where
        )
    answered.add(name)
    return dataclasses.replace(message, tool_call_id=waiting.pop(name))
