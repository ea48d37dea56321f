"""The tools of a request and which of them may or must be called: as a grammar, as a guide, and for the prompt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pixtral.errors import StructureError, nearest
from pixtral.structured.forms import Form, quote
from pixtral.structured.schemas import JsonSchema, check_schema, grammar_of

MAX_TOOLS = 128
MAX_CALLS = 32  # in one answer
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Choice = Literal["auto", "none", "required"]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        arguments: the schema of its arguments, an object.
        strict: refuse keywords of the schema that cannot be enforced; otherwise they are let go.
        definition: what the prompt shows of it.
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
        """For the prompt, all of them whatever the choice, since earlier calls may stand in the conversation."""
        return [dict(tool.definition) for tool in self.tools]

    def forms(self) -> Iterator[Form]:
        """The form of each tool's arguments by itself."""
        for index, tool in enumerate(self.tools):
            yield Form(f"tools[{index}].function.parameters", _schema(tool), json=True)

    def calls(self, trigger: int | None) -> Form:
        """The form of calls: [TOOL_CALLS], if its id is given, and the array behind it as Mistral's models write it."""
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
        StructureError: a tool that is none, a schema that cannot be worked with, a choice that names no tool.
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
            raise StructureError(f"tool_choice is {choice!r} but there are no tools; give some, or leave it out",
                                 "tool_choice")  # fmt: skip
        return None
    return ToolUse(tuple(known.values()), choice or "auto", name, True if parallel is None else parallel)


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
    schema = _arguments(parameters, f"{where}.function.parameters")
    shown = {"name": name, "description": function.get("description") or "", "parameters": schema}
    return Tool(name, schema, bool(strict), {"type": "function", "function": shown})


def _arguments(parameters: object, where: str) -> dict[str, Any]:
    """The schema of a tool's arguments; one that says nothing means that there are none."""
    if parameters is None or parameters == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = check_schema(parameters, where)
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        kind = schema.get("type") if isinstance(schema, Mapping) else schema
        raise StructureError(f"{where} is a schema of {kind!r}; expected one of type 'object'", where)
    return {"type": "object", **schema}


def _call(tool: Tool) -> str:
    """The rule body of one call, with the blanks of the models' training, or without any."""
    begin = quote('{"name":'), quote(f'"{tool.name}",'), quote('"arguments":')
    return ' " "? '.join([*begin, _schema(tool)]) + ' "}"'


def _schema(tool: Tool) -> str:
    return grammar_of(tool.arguments, lenient=not tool.strict)
