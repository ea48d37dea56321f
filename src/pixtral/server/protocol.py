"""Request bodies: what all of them share, the sampling parameters, and the body of /v1/completions.

Unknown fields are refused by name, known ones without effect are accepted, and null counts as left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from pixtral.engine.sampling_params import SamplingParams
from pixtral.server.errors import ApiError, validation_error

if TYPE_CHECKING:
    from starlette.requests import Request

    from pixtral.server.state import ServerState

# Fields of OpenAI's API that ask for something this server does not have: null is the same as leaving them out.
REFUSED = {
    "audio": "answers are text only; leave it out",
    "prediction": "predicted outputs are not supported; start the server with --prompt-lookup for a similar gain",
    "reasoning_effort": "the model has no reasoning mode; leave it out",
    "reasoning": "the model has no reasoning mode; leave it out",
    "web_search_options": "the server searches nothing; leave it out",
    "functions": "deprecated by OpenAI; use tools",
    "function_call": "deprecated by OpenAI; use tool_choice",
    "moderation": "the server moderates nothing; leave it out",
    "best_of": "not supported; use n",
    "suffix": "the model does not fill in the middle; leave it out",
    "echo": "not supported; put prompt and answer together yourself",
    "prompt_logprobs": "not supported; logprobs gives those of the answer",
    "use_beam_search": "not supported; leave it out",
    "length_penalty": "belongs to beam search, which is not supported; leave it out",
    "chat_template": "the template is the model's own; leave it out",
}

DEFAULT_TOKENS = 16  # max_tokens of /v1/completions, as with OpenAI
_MAX_COMMAS = 524_288  # a hundred thousand tokens as numbers, several times
_MAX_COLONS = 65_536  # every field of four thousand messages
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

JsonObject = dict[str, JsonValue]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]
T = TypeVar("T")
# Validation ends at the first wrong entry: errors of a list of millions would fill the memory.
Items = Annotated[list[T], Field(fail_fast=True)]
Ids = Annotated[Items[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class Strict(BaseModel):
    """No unknown fields, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Nullable(Strict):
    """An object in which null counts as left out; clients send optional fields so."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data


class Body(Nullable):
    """The body of a request.

    Some fields are checked and have no effect: `user`, `safety_identifier` and `metadata` are for OpenAI's records,
    `prompt_cache_key` is not needed because every prompt is looked up in the prefix cache, `store` and `service_tier`
    are accepted where they ask for what is the case anyway.
    """

    hints: ClassVar[dict[str, str]] = REFUSED

    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: str | None = None

    @field_validator("store")
    @classmethod
    def _nothing_is_stored(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("answers are not stored; leave it out")
        return value

    @field_validator("service_tier")
    @classmethod
    def _one_tier(cls, value: str | None) -> str | None:
        if value not in (None, "auto", "default"):
            raise ValueError("there is one tier only, expected 'auto' or 'default'")
        return value


class StreamOptions(Strict):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None

    @field_validator("include_obfuscation")
    @classmethod
    def _no_padding(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("chunks are not padded, expected false")
        return value


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: exactly one constraint on the answer."""

    model_config = ConfigDict(populate_by_name=True, json_schema_extra={"minProperties": 1, "maxProperties": 1})

    json_: JsonObject | bool | None = Field(None, alias="json", description="JSON that this schema allows.")
    json_object: Literal[True] | None = Field(None, description="Any JSON object.")
    regex: str | None = Field(None, description="Text that this expression of Rust's regex crate matches.")
    choice: Items[str] | None = Field(None, description="One of these texts.")
    grammar: str | None = Field(None, description="Text that this grammar describes, in llguidance's Lark.")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of json, json_object, regex, choice and grammar, got {len(given)}")
        return self


class Sampling(Body):
    """Sampling parameters: OpenAI's, then vLLM's."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: str | Items[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: Items[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=1024)
    skip_special_tokens: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    structured_outputs: StructuredOutputs | None = None

    @field_validator("stop")
    @classmethod
    def _strings(cls, value: str | list[str] | None) -> str | list[str] | None:
        strings = [value] if isinstance(value, str) else value or []
        if any(not one or len(one) > 1024 for one in strings) or len(strings) > 64:
            raise ValueError("expected up to 64 strings of 1 to 1024 characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if any(not (name.isascii() and name.isdigit() and len(name) < 10) for name in value or ()):
            raise ValueError("expected token ids as keys; /tokenize gives them")
        return value

    @model_validator(mode="after")
    def _options_of_streams(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is given, but stream is not true; leave one out or set the other")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters; fields that were left out have OpenAI's defaults."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "n": self.n,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "top_k": max(self.top_k, 0) if self.top_k is not None else None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
        }
        return SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            max_tokens=max_tokens,
            logprobs=logprobs,
        )


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: (
        str
        | Ids
        | Annotated[Items[str], Field(min_length=1, max_length=128)]
        | Annotated[Items[Ids], Field(min_length=1, max_length=128)]
    )
    max_tokens: int | None = Field(None, ge=1, description=f"{DEFAULT_TOKENS} if left out, as with OpenAI.")
    logprobs: int | None = Field(None, ge=0, le=20)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _not_too_many(self) -> CompletionRequest:
        if len(self.prompts) * (self.n or 1) > 128:
            raise ValueError("n times the number of prompts is more than 128; send several requests")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list: each a text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


Model = TypeVar("Model", bound=Body)


async def read_request(http: Request, kind: type[Model]) -> tuple[ServerState, Model]:
    """The server's state, and the validated body of a request.

    Raises:
        ApiError: 415 for a content type other than JSON, 400 with the field that is invalid, 404 for another model.
    """
    state: ServerState = http.app.state.server
    content = await http.body()
    media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        found = f"content-type {media!r}" if media else "no content-type"
        raise ApiError(415, f"found {found}, expected application/json; set the header", code="unsupported_media_type")
    _check_structure(content)
    try:
        body = kind.model_validate_json(content)
    except ValidationError as error:
        raise validation_error(error, content, kind.hints) from error
    state.check_model(body.model)
    return state, body


def _check_structure(body: bytes) -> None:
    """Refuse JSON with more values than any valid request has: megabytes of text pass, millions of numbers do not.

    Parsing them, and listing what is wrong with each, would block the event loop for a minute.
    """
    if body.count(b",") <= _MAX_COMMAS and body.count(b":") <= _MAX_COLONS:
        return
    bare = _STRING.sub(b"", body)  # commas inside of strings are no values
    commas, colons = bare.count(b","), bare.count(b":")
    if commas > _MAX_COMMAS or colons > _MAX_COLONS:
        found, most = (
            (f"{commas:,} values", _MAX_COMMAS) if commas > _MAX_COMMAS else (f"{colons:,} fields", _MAX_COLONS)
        )
        raise ApiError(
            400,
            f"the body has about {found}; expected at most {most:,}; send fewer in one request",
            code="too_many_values",
        )
