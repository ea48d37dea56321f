"""ApiError, which is answered as OpenAI's error object, and the conversion of other errors to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import EngineError, ImageError, ImageTooLarge, PixtralError, StructureError

if TYPE_CHECKING:
    from pydantic import ValidationError

_MAX_MESSAGE = 2000  # characters; a message may quote what a client sent


class ApiError(PixtralError):
    """An error response with OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            status: HTTP status.
            message: found, expected, what to do.
            type: OpenAI's error type, such as "invalid_request_error" or "server_error".
            param: the invalid field of the request, such as "messages[0].content".
            code: machine-readable, such as "context_length_exceeded".
            headers: of the response.
        """
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The response's body."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def encoded(self) -> bytes:
        """The body as JSON; lone surrogates that a client sent do not break it."""
        return json.dumps(self.body()).encode()


def unavailable(message: str) -> ApiError:
    """503: the server is being stopped, or its engine has stopped."""
    return ApiError(503, message, type="server_error", code="unavailable", headers={"retry-after": "5"})


def as_api_error(error: BaseException) -> ApiError:
    """Any error as an ApiError; internal errors are not described to clients."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        return unavailable(str(error))
    if isinstance(error, ImageTooLarge):
        return ApiError(400, str(error), param="messages", code="image_too_large")
    if isinstance(error, ImageError):
        return ApiError(400, str(error), param="messages", code="invalid_image")
    if isinstance(error, StructureError):
        return ApiError(400, str(error), param=error.param)
    if isinstance(error, PixtralError):
        return ApiError(400, str(error), param=_parameter(str(error)))
    return ApiError(
        500, "the server failed to answer this request; its log says why", type="server_error", code="internal_error"
    )


def validation_error(error: ValidationError, body: bytes, hints: Mapping[str, str]) -> ApiError:
    """The most specific of pydantic's errors: the one whose place in the body is deepest.

    Args:
        error: of the validation of a body.
        body: as it came.
        hints: messages about fields that are known and refused, by name.
    """
    found = error.errors(include_url=False)
    if found[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {found[0]['msg']}", code="invalid_json")
    data = json.loads(body)
    places = [(_place(one["loc"], data, one["type"] == "missing"), one) for one in found]
    place, first = max(places, key=lambda pair: len(pair[0]))  # the first of the deepest
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
    if first["type"] == "extra_forbidden":
        hint = hints.get(str(place[-1]))
        message = f"{param}: {hint}" if hint else f"unknown parameter {param!r}; leave it out"
        return ApiError(400, message, param=param, code="unsupported_parameter" if hint else "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing; it is required", param=param, code="missing_required_parameter")
    text = first["msg"].removeprefix("Value error, ")
    message = f"{param}: {text[:1].lower()}{text[1:]}, found {_shown(first['input'])}" if param else text
    return ApiError(400, message, param=param or None, code="invalid_value")


def _place(loc: tuple[int | str, ...], data: object, is_missing: bool) -> list[int | str]:
    """Where in the body an error is: pydantic's location without the names of union members in it."""
    place: list[int | str] = []
    for number, step in enumerate(loc):
        leads = isinstance(data, list) if isinstance(step, int) else isinstance(data, dict) and step in data
        if leads:
            data = cast(Any, data)[step]
        elif not (is_missing and number == len(loc) - 1):
            continue
        place.append(step)
    return place


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _parameter(message: str) -> str | None:
    """The field at the beginning of an engine's message: "top_p is 3, expected ..."."""
    word = message.partition(" ")[0]
    return word if any(word == field.name for field in dataclasses.fields(SamplingParams)) else None
