"""Tools for the assistant: JSON schemas as they are, Python functions turned into schemas."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pixtral.errors import PromptError

_BASIC = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null", Any: None}
_SECTION = re.compile(r"^\s*(Args|Arguments|Returns|Return|Raises):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schemas(tools: Sequence[object] | None) -> list[dict[str, Any]] | None:
    """JSON schemas of tools given as schemas or as functions; None stays None."""
    if tools is None:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise PromptError(f"tools is a {type(tools).__name__}; expected a list of JSON schemas or functions")
    schemas: list[dict[str, Any]] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(dict(tool))
        elif callable(tool) and not isinstance(tool, type):
            schemas.append(function_schema(tool))
        else:
            raise PromptError(f"tools contains {tool!r}; expected a JSON schema or a function")
    return schemas


def function_schema(function: Callable[..., object]) -> dict[str, Any]:
    """The schema of a function from its annotations and its docstring in Google's style.

    Every parameter needs an annotation and a line under "Args:"; "(choices: [...])" at that line's end lists the
    values allowed.

    Raises:
        PromptError: a docstring, an annotation or a description is missing, or a type has no JSON counterpart.
    """
    name = getattr(function, "__name__", repr(function))
    docstring = inspect.getdoc(function)
    if not docstring:
        raise PromptError(f"tool {name!r} has no docstring; write what it does and what its arguments are")
    summary, described, returns = _sections(docstring)
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints:
            raise PromptError(f"tool {name!r}: argument {parameter.name!r} has no annotation")
        if parameter.name not in described:
            raise PromptError(f"tool {name!r}: the docstring does not describe argument {parameter.name!r} under Args:")
        schema = _type_schema(hints[parameter.name], f"tool {name!r}, argument {parameter.name!r}")
        text = described[parameter.name]
        if choices := _CHOICES.search(text):
            schema["enum"] = json.loads(choices.group(1))
            text = text[: choices.start()].strip()
        properties[parameter.name] = {**schema, "description": text}
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    result: dict[str, Any] = {"name": name, "description": summary, "parameters": parameters}
    if "return" in hints:
        result["return"] = _type_schema(hints["return"], f"tool {name!r}, result")
        if returns:
            result["return"]["description"] = returns
    return {"type": "function", "function": result}


def _sections(docstring: str) -> tuple[str, dict[str, str], str]:
    """(summary, descriptions of the arguments, description of the result)."""
    pieces = _SECTION.split(docstring)
    named = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    arguments: dict[str, str] = {}
    block = inspect.cleandoc(named.get("Args", named.get("Arguments", "")))
    current = None
    for line in block.splitlines():
        if not line.startswith(" ") and (match := _ARGUMENT.match(line)):
            current = match.group(1)
            arguments[current] = match.group(2).strip()
        elif current is not None and line.strip():
            arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    returns = " ".join(named.get("Returns", named.get("Return", "")).split())
    return pieces[0].strip(), arguments, returns


def _type_schema(hint: Any, where: str) -> dict[str, Any]:
    if hint in _BASIC:
        return {} if _BASIC[hint] is None else {"type": _BASIC[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_type_schema(argument, where) for argument in arguments if argument is not type(None)]
        if len(kinds) == 1:
            schema = kinds[0]
        elif all(set(kind) == {"type"} and isinstance(kind["type"], str) for kind in kinds):
            schema = {"type": sorted(kind["type"] for kind in kinds)}
        else:
            schema = {"anyOf": kinds}
        if type(None) in arguments:
            schema["nullable"] = True
        return schema
    if origin is typing.Literal:
        names = {_BASIC.get(type(value)) for value in arguments}
        return {"type": names.pop(), "enum": list(arguments)} if len(names) == 1 else {"enum": list(arguments)}
    if hint is list or origin is list:
        return {"type": "array", **({"items": _type_schema(arguments[0], where)} if arguments else {})}
    if hint is tuple or origin is tuple:
        return {"type": "array", **({"prefixItems": [_type_schema(a, where) for a in arguments]} if arguments else {})}
    if hint is dict or origin is dict:
        extra = {"additionalProperties": _type_schema(arguments[1], where)} if len(arguments) == 2 else {}
        return {"type": "object", **extra}
    raise PromptError(f"{where} has the type {hint!r}, which has no JSON counterpart; use str, int, list, dict, ...")
