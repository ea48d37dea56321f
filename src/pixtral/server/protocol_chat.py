"""The body of /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pixtral.server.images import Detail
from pixtral.server.protocol import Items, JsonObject, Nullable, Sampling, Strict


class TextPart(Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """The URL of an image, and the level of detail, which limits its tokens."""

    url: str
    detail: Detail | None = None


class ImagePart(Strict):
    """An image, or a PDF whose pages are images: a data: URI, or an http(s) URL if the server fetches those."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class FileData(Strict):
    """A PDF as a data: URI."""

    file_data: str
    filename: str | None = None


class FilePart(Strict):
    """A PDF in OpenAI's form."""

    type: Literal["file"]
    file: FileData


class RefusalPart(Strict):
    """The refusal of an assistant."""

    type: Literal["refusal"]
    refusal: str


class FunctionCall(Strict):
    """A function and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Nullable):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    index: int | None = None
    function: FunctionCall


class SystemMessage(Nullable):
    """Instructions."""

    role: Literal["system", "developer"]
    content: str | Items[TextPart]
    name: str | None = None


class UserMessage(Nullable):
    """Text and images of the user."""

    role: Literal["user"]
    content: str | Items[Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]]
    name: str | None = None


class AssistantMessage(Nullable):
    """An earlier answer; as the last message, the beginning of the answer to come."""

    model_config = ConfigDict(json_schema_extra={"description": "content or tool_calls must be there"})

    role: Literal["assistant"]
    content: str | Items[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    tool_calls: Items[ToolCall] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    name: str | None = None


class ToolMessage(Nullable):
    """The result of a tool call."""

    role: Literal["tool"]
    content: str | Items[TextPart]
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(Nullable):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    """The name of a function."""

    name: str


class NamedTool(Strict):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaOfFormat(Nullable):
    """A schema with its name."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaOfFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: Items[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Items[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: Items[Literal["text"]] | None = Field(None, description="Text is all there is.")
    verbosity: Literal["medium"] | None = Field(None, description="The model has no other setting.")

    @model_validator(mode="after")
    def _fits_together(self) -> ChatCompletionRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are both given; keep max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is given, but logprobs is not true; leave one out or set the other")
        return self

    @property
    def limit(self) -> int | None:
        """The maximum of new tokens."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to return for each token; None returns no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None
