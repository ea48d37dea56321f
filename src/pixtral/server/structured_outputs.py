"""Structured outputs and tools of a request: the engine's guide, and the reader that finds tool calls in the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pixtral.engine.outputs import RequestOutput
from pixtral.engine.request import Guide
from pixtral.errors import StructureError
from pixtral.server.protocol import Sampling, StructuredOutputs
from pixtral.server.protocol_chat import (
    ChatCompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    ResponseFormat,
)
from pixtral.server.streaming import Delta, Reader, TextReader
from pixtral.structured import formats, tool_parser
from pixtral.structured.grammars import guide_of, tool_calls_id
from pixtral.structured.tools import read_tools

if TYPE_CHECKING:
    from pixtral.server.state import ServerState


@dataclasses.dataclass(frozen=True)
class Structure:
    """Constraints and tools of one request.

    Attributes:
        guide: makes the guide of a choice; None where the answer is not constrained.
        tools: definitions for the prompt.
        make_reader: makes the reader of a choice.
    """

    guide: Callable[[], Guide] | None = None
    tools: Sequence[dict[str, Any]] | None = None
    make_reader: Callable[[], Reader] = TextReader


async def structure_of(state: ServerState, body: ChatCompletionRequest) -> Structure:
    """Guide and tools of a chat completion, compiled in a thread.

    Raises:
        StructureError: a schema, pattern, grammar, tool or combination that cannot be used.
    """
    if body.response_format is None and body.structured_outputs is None and not body.tools and body.tool_choice is None:
        return Structure()
    form = _form_of_chat(body)
    choice = body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    tools = read_tools([tool.model_dump() for tool in body.tools or ()], choice, body.parallel_tool_calls)
    if form is None and tools is None:
        return Structure()
    _check_ends(body, "response_format" if form is not None else "tools")
    guide = await state.in_thread(lambda: guide_of(state.grammars, form, tools))
    if tools is None:
        return Structure(guide)
    if tools.choice == "none":
        return Structure(guide, tools.definitions)
    return Structure(guide, tools.definitions, _make_reader(state, body))


async def guide_of_text(state: ServerState, body: Sampling) -> Callable[[], Guide] | None:
    """The guide of a completion, which has no tools; errors as in `structure_of`."""
    if body.structured_outputs is None:
        return None
    form = _form_of(body.structured_outputs)
    _check_ends(body, "structured_outputs")
    return await state.in_thread(lambda: guide_of(state.grammars, form, None))


def _form_of(given: StructuredOutputs) -> formats.Form:
    """The form that vLLM's `structured_outputs` asks for."""
    if given.json_ is not None:
        return formats.json_schema(given.json_, "structured_outputs.json")
    if given.regex is not None:
        return formats.pattern(given.regex)
    if given.choice is not None:
        return formats.choice(given.choice)
    if given.grammar is not None:
        return formats.lark(given.grammar)
    return formats.json_object("structured_outputs.json_object")


def _form_of_format(given: ResponseFormat) -> formats.Form | None:
    """The form that OpenAI's `response_format` asks for; None for text."""
    if isinstance(given, JsonObjectFormat):
        return formats.json_object()
    if not isinstance(given, JsonSchemaFormat):
        return None
    schema = given.json_schema
    if schema.schema_ is None:
        return formats.json_object()
    return formats.json_schema(schema.schema_, lenient=schema.strict is False)


def _check_ends(body: Sampling, param: str) -> None:
    """Refuse settings that contradict an answer which ends where its form ends."""
    if body.ignore_eos:
        raise StructureError(f"ignore_eos is true, but {param} says when the answer ends; leave it out", "ignore_eos")
    if body.min_tokens:
        raise StructureError(
            f"min_tokens is {body.min_tokens}, but {param} says when the answer ends; leave it out", "min_tokens"
        )


def _form_of_chat(body: ChatCompletionRequest) -> formats.Form | None:
    form = None if body.response_format is None else _form_of_format(body.response_format)
    if body.structured_outputs is None:
        return form
    if form is not None:
        raise StructureError(
            "structured_outputs and response_format both say what the answer looks like; keep one", "structured_outputs"
        )
    return _form_of(body.structured_outputs)


def _make_reader(state: ServerState, body: ChatCompletionRequest) -> Callable[[], Reader]:
    tokenizer = state.processor.tokenizer
    trigger = tool_calls_id(tokenizer)
    params = body.sampling(None, None)
    return lambda: ToolReader(
        tool_parser.AnswerParser(tokenizer, trigger, stop=params.stop, ends=params.stop_token_ids)
    )


class ToolReader:
    """A choice that may call tools."""

    def __init__(self, parser: tool_parser.AnswerParser) -> None:
        self._parser = parser
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def push(self, output: RequestOutput) -> list[Delta]:
        """Text, names of functions, and pieces of their arguments."""
        found = [self._parser.push(output.token_ids)]
        if output.finish_reason is not None:
            found.append(self._parser.finish())
        deltas: list[Delta] = []
        for delta in found:
            if delta.content:
                self._content.append(delta.content)
                deltas.append({"content": delta.content})
            if delta.calls:
                deltas.append({"tool_calls": [self._call(one) for one in delta.calls]})
        return deltas

    def message(self) -> dict[str, Any]:
        """Text and calls."""
        content = "".join(self._content)
        message = {"role": "assistant", "content": content if content or not self._calls else None, "refusal": None}
        return {**message, "tool_calls": self._calls} if self._calls else message

    def finish_reason(self, output: RequestOutput) -> str:
        """ "tool_calls" when the answer ended by itself with calls, else as the engine gives it."""
        assert output.finish_reason is not None
        return "tool_calls" if self._calls and output.finish_reason == "stop" else output.finish_reason

    def _call(self, delta: tool_parser.CallDelta) -> dict[str, Any]:
        """OpenAI's delta of a call, which is also kept for `message`."""
        if delta.name is None:
            self._calls[delta.index]["function"]["arguments"] += delta.arguments
            return {"index": delta.index, "function": {"arguments": delta.arguments}}
        head = {"id": delta.id, "type": "function"}
        self._calls.append({**head, "function": {"name": delta.name, "arguments": delta.arguments}})
        return {"index": delta.index, **head, "function": {"name": delta.name, "arguments": delta.arguments}}
