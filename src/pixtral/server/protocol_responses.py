"""The body of /v1/responses, and its conversion to the body of a chat completion."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from pixtral.server.images import Detail
from pixtral.server.protocol import REFUSED, Body, Items, JsonObject, Nullable, Strict
from pixtral.server.protocol_chat import ChatCompletionRequest, JsonObjectFormat, NamedTool, TextFormat, Tool


class InputText(Strict):
    """Text."""

    type: Literal["input_text"]
    text: str


class InputImage(Nullable):
    """An image: a data: URI, or an http(s) URL if the server fetches those."""

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None


class InputFile(Nullable):
    """A PDF as a data: URI."""

    type: Literal["input_file"]
    file_data: str
    filename: str | None = None


class OutputText(Nullable):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, description="Part of answers that are sent back; not read.")


Part = Annotated[InputText | InputImage | InputFile | OutputText, Field(discriminator="type")]


class Item(Nullable):
    """Fields of items of an earlier response that is sent back."""

    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Items[Part]


class CallItem(Item):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Item):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


AnyItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(Nullable):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NamedChoice(Strict):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class JsonSchemaText(Nullable):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    name: str
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextSettings(Nullable):
    """The format of the answer."""

    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaText, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(Body):
    """The body of /v1/responses."""

    hints: ClassVar[dict[str, str]] = {
        **REFUSED,
        "previous_response_id": "answers are not stored; send the whole conversation as input",
        "conversation": "conversations are not stored; send the whole conversation as input",
        "prompt": "prompt templates are not stored; send the text as input",
        "background": "not supported; leave it out",
        "max_tool_calls": "the server calls no tools itself; leave it out",
    }

    input: str | Annotated[Items[AnyItem], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stream: bool | None = None
    text: TextSettings | None = None
    tools: Items[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = Field(None, description="Prompts are never cut.")
    include: list[str] | None = Field(None, max_length=0)

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("expected text")
        return value

    def as_chat(self) -> ChatCompletionRequest:
        """The same request as a chat completion."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        for item in () if isinstance(self.input, str) else self.input:
            _append(messages, item)
        chosen = self.tool_choice
        given: dict[str, Any] = {
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "response_format": _format(self.text),
            "tools": [
                Tool.model_validate({"type": "function", "function": tool.model_dump(exclude={"type"})})
                for tool in self.tools
            ]
            if self.tools
            else None,
            "tool_choice": NamedTool.model_validate({"type": "function", "function": {"name": chosen.name}})
            if isinstance(chosen, NamedChoice)
            else chosen,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        return ChatCompletionRequest.model_validate({"messages": messages, **given})


def _append(messages: list[dict[str, Any]], item: MessageItem | CallItem | CallOutputItem) -> None:
    """Append one item; calls become part of the assistant's message before them."""
    if isinstance(item, CallOutputItem):
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
    elif isinstance(item, CallItem):
        call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant"})
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        content = item.content
        messages.append({"role": item.role, "content": content if isinstance(content, str) else [*map(_part, content)]})


def _part(part: InputText | InputImage | InputFile | OutputText) -> dict[str, Any]:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
    if isinstance(part, InputFile):
        return {"type": "file", "file": {"file_data": part.file_data, "filename": part.filename}}
    return {"type": "text", "text": part.text}


def _format(text: TextSettings | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    if not isinstance(text.format, JsonSchemaText):
        return {"type": text.format.type}
    made = text.format
    schema = {"name": made.name, "description": made.description, "schema": made.schema_, "strict": made.strict}
    return {"type": "json_schema", "json_schema": schema}
