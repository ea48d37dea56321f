"""Tools of a request, the grammar of their calls, and checks of the calls and results of a conversation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pixtral.errors import StructureError, nearest
from pixtral.messages import Message, ToolCall
from pixtral.structured.formats import Form, JsonSchema, check_schema, grammar_of, quote
from pixtral.structured.tool_parser import ID_LENGTH

MAX_TOOLS = 128
MAX_CALLS = 32  # in one answer
_ALPHABET = string.digits + string.ascii_letters
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Choice = Literal["auto", "none", "required"]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        arguments: the schema of its arguments, an object.
        strict: refuse keywords of the schema that cannot be enforced; otherwise they are ignored.
        definition: its entry in the prompt.
    """

    name: str
    arguments: JsonSchema
    strict: bool
    definition: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """The tools of a request.

    Attributes:
        tools: all of them.
        choice: "auto" leaves it to the model, "none" allows no call, "required" asks for one or more.
        name: the one tool that has to be called, once, with "required".
        parallel: whether there may be several calls in an answer.
    """

    tools: tuple[Tool, ...]
    choice: Choice = "auto"
    name: str | None = None
    parallel: bool = True

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """For the prompt: all of them whatever the choice, since the conversation may hold earlier calls."""
        return [dict(tool.definition) for tool in self.tools]

    def forms(self) -> Iterator[Form]:
        """The form of each tool's arguments by itself."""
        for index, tool in enumerate(self.tools):
            yield Form(f"tools[{index}].function.parameters", _schema(tool), json=True)

    def calls(self, trigger: int | None) -> Form:
        """The form of calls: [TOOL_CALLS], if its id is given, and the array after it as Mistral's models write it."""
        open_to = [tool for tool in self.tools if self.name in (None, tool.name)]
        one = " | ".join(f"({_call(tool)})" for tool in open_to)
        more = f'("," " "? call){{0,{MAX_CALLS - 1}}}' if self.parallel and self.name is None else ""
        start = "" if trigger is None else f"<[{trigger}]> "
        return Form("tools", f'{start}"[" call {more} "]"\ncall: {one}', json=True)

    def with_content(self, content: Form, trigger: int) -> Form:
        """Calls, or an answer of some form.

        Raises:
            StructureError: the form is a grammar of its own.
        """
        if content.grammar:
            raise StructureError(
                f"{content.param} and tools that may be called exclude each other; set tool_choice to 'none'",
                content.param,
            )
        calls = self.calls(trigger)
        return Form(content.param, f"answer | calls\nanswer: {content.body}\ncalls: {calls.body}", json=content.json)


def read_tools(tools: Sequence[object], choice: object = None, parallel: bool | None = None) -> ToolUse | None:
    """The tools of a request in OpenAI's form; None without any.

    Args:
        tools: `{"type": "function", "function": {"name", "description", "parameters", "strict"}}` each.
        choice: "auto", "none", "required", or `{"type": "function", "function": {"name": ...}}`; None is "auto".
        parallel: whether there may be several calls in an answer; None allows them.

    Raises:
        StructureError: an invalid tool or schema, or a choice of an unknown tool.
    """
    known: dict[str, Tool] = {}
    if len(tools) > MAX_TOOLS:
        raise StructureError(f"tools has {len(tools)} entries, at most {MAX_TOOLS} are taken", "tools")
    for index, given in enumerate(tools):
        tool = _tool(given, f"tools[{index}]")
        if tool.name in known:
            raise StructureError(
                f"tools[{index}].function.name is {tool.name!r} again; give every tool its own name",
                f"tools[{index}].function.name",
            )
        known[tool.name] = tool
    name = None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if name not in known:
            hint = nearest(str(name), known) if known else "there are no tools"
            raise StructureError(
                f"tool_choice names the tool {name!r}, which is not among tools; {hint}", "tool_choice"
            )
        choice = "required"
    if choice not in (None, "auto", "none", "required"):
        raise StructureError(
            f"tool_choice is {choice!r}; expected 'auto', 'none', 'required' or "
            '{"type": "function", "function": {"name": ...}}',
            "tool_choice",
        )
    if not known:
        if choice in ("auto", "required"):
            raise StructureError(
                f"tool_choice is {choice!r} but there are no tools; give some, or leave it out", "tool_choice"
            )
        return None
    return ToolUse(tuple(known.values()), choice or "auto", name, True if parallel is None else parallel)


def check_history(messages: Sequence[Message]) -> list[Message]:
    """The conversation, ready for a prompt.

    Every call must be followed by its result before the next message. Ids of calls that are not nine letters or digits
    (other servers have longer ones) are replaced, in calls and results alike. Text beside calls is dropped, since
    Mistral's prompts cannot hold it.

    Raises:
        StructureError: a result without its call, a call without its result or with two, an id that is used twice,
            arguments that are not a JSON object.
    """
    checked: list[Message] = []
    waiting: dict[str, str] = {}  # calls without a result yet: id -> id in the prompt
    answered: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            message = _checked_result(message, waiting, answered, where)
        elif waiting:
            raise StructureError(
                f"{where} has role {message.role!r}, but the tool call(s) {', '.join(map(repr, waiting))} before it "
                "have no result yet; put a message with role 'tool' and that tool_call_id there",
                f"{where}.role",
            )
        elif message.tool_calls:
            answered = set()
            message = _checked_calls(message, waiting, where)
        checked.append(message)
    if waiting:
        raise StructureError(
            f"the conversation ends with the tool call(s) {', '.join(map(repr, waiting))} without result; add a "
            "message with role 'tool' and that tool_call_id for each",
            "messages",
        )
    return checked


def prompt_id(call_id: str) -> str:
    """A call's id for the prompt: itself if it is nine letters or digits, else nine derived from its hash."""
    if len(call_id) == ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    letters = ""
    for _ in range(ID_LENGTH):
        number, place = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[place]
    return letters


def _tool(given: object, where: str) -> Tool:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or given.get("type") != "function" or not isinstance(function, Mapping):
        raise StructureError(
            f'{where} is not of the form {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}', where
        )
    name, parameters, strict = (function.get(key) for key in ("name", "parameters", "strict"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StructureError(
            f"{where}.function.name is {name!r}; expected 1 to 64 letters, digits, '_', '.' or '-'",
            f"{where}.function.name",
        )
    schema = _arguments_schema(parameters, f"{where}.function.parameters")
    shown = {"name": name, "description": function.get("description") or "", "parameters": schema}
    return Tool(name, schema, bool(strict), {"type": "function", "function": shown})


def _arguments_schema(parameters: object, where: str) -> dict[str, Any]:
    """The schema of a tool's arguments; an empty one means no arguments."""
    if parameters is None or parameters == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = check_schema(parameters, where)
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        kind = schema.get("type") if isinstance(schema, Mapping) else schema
        raise StructureError(f"{where} is a schema of {kind!r}; expected one of type 'object'", where)
    return {"type": "object", **schema}


def _call(tool: Tool) -> str:
    """The rule body of one call; blanks as in the models' training data, or none."""
    begin = quote('{"name":'), quote(f'"{tool.name}",'), quote('"arguments":')
    return ' " "? '.join([*begin, _schema(tool)]) + ' "}"'


def _schema(tool: Tool) -> str:
    return grammar_of(tool.arguments, lenient=not tool.strict)


def _checked_calls(message: Message, waiting: dict[str, str], where: str) -> Message:
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
        calls.append(ToolCall(call.name, _arguments_text(call.arguments, here), waiting[call.id]))
    return dataclasses.replace(message, parts=(), tool_calls=tuple(calls), plain=False)


def _arguments_text(arguments: str | Mapping[str, object], where: str) -> str:
    """As JSON text, which templates insert unchanged."""
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
    return text or json.dumps(found, ensure_ascii=False)  # unchanged, since the model's own text is in the prefix cache


def _checked_result(message: Message, waiting: dict[str, str], answered: set[str], where: str) -> Message:
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
            f"{where} is a tool's result with an image; describe it in text, or show it in a user message", where
        )
    answered.add(name)
    return dataclasses.replace(message, tool_call_id=waiting.pop(name))
