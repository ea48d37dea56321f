"""The application: routes and the OpenAPI document about them, middleware, and errors as OpenAI's error objects."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixtral.errors import PixtralError
from pixtral.server.errors import ApiError, as_api_error
from pixtral.server.guard import Guard, guard_limits
from pixtral.server.page import StaticFiles, facts_of, measure_of, page_routes, pages_of
from pixtral.server.protocol import CompletionRequest
from pixtral.server.protocol_chat import ChatCompletionRequest
from pixtral.server.protocol_responses import ResponsesRequest
from pixtral.server.routes_chat import chat_completions
from pixtral.server.routes_completions import completions
from pixtral.server.routes_info import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize,
    health,
    list_models,
    metrics,
    ready,
    retrieve_model,
    tokenize,
)
from pixtral.server.routes_responses import responses
from pixtral.server.state import ServerState
from pixtral.server.streaming import error_response

_POSTS = (
    ("/v1/chat/completions", chat_completions, ChatCompletionRequest, "OpenAI"),
    ("/v1/completions", completions, CompletionRequest, "OpenAI"),
    ("/v1/responses", responses, ResponsesRequest, "OpenAI"),
    ("/tokenize", tokenize, TokenizeRequest, "tokens"),
    ("/detokenize", detokenize, DetokenizeRequest, "tokens"),
)
_GETS = (
    ("/v1/models", list_models, "OpenAI"),
    ("/v1/models/{name:path}", retrieve_model, "OpenAI"),
    ("/health", health, "operation"),
    ("/ready", ready, "operation"),
    ("/metrics", metrics, "operation"),
)
_QUIET = ("/health", "/ready", "/metrics")  # polled all the time: logged at level debug while they succeed

_REF = "#/components/schemas/{model}"
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    "400": "the request cannot be honoured",
    "401": "no key, or a wrong one",
    "404": "no such model",
    "408": "the request took too long",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "too many requests are waiting",
    "503": "the server is being stopped",
}

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_log = logging.getLogger("pixtral.server")
_access_log = logging.getLogger("pixtral.server.access")


def make_app(state: ServerState) -> FastAPI:
    """The application around a loaded model. Its lifespan starts and stops the engine."""
    from pixtral import __version__

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with state.engine:
            yield
        await state.close()

    app = FastAPI(title="pixtral", version=__version__, lifespan=lifespan, redoc_url=None)
    app.state.server = state
    for path, post, body, tag in _POSTS:
        app.post(path, openapi_extra=_describe(body), tags=[tag])(post)
    for path, get, tag in _GETS:
        app.get(path, tags=[tag])(get)
    _add_schemas(app, [body for _, _, body, _ in _POSTS])
    static = StaticFiles.read()
    app.include_router(page_routes(static, facts_of(state), measure_of(state), pages_of(state)))
    _handle_errors(app)
    app.add_middleware(Guard, limits=guard_limits(state.settings, static.paths))
    if origins := state.settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
            max_age=600,
        )
    app.add_middleware(RequestContext)  # the last one added is the outermost
    return app


def _describe(body: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads this body itself (`read_request`), out of FastAPI's sight."""
    schema = {"$ref": _REF.format(model=body.__name__)}
    error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            status: {"description": description, "content": error} for status, description in _STATUSES.items()
        },
    }


def _add_schemas(app: FastAPI, bodies: Iterable[type[BaseModel]]) -> None:
    """Add the schemas of the bodies and of errors to the OpenAPI document, which is made when first asked for."""
    plain = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            pairs: Any = [(body, "validation") for body in bodies]
            _, made = models_json_schema(pairs, ref_template=_REF)
            app.openapi_schema = plain()
            schemas = app.openapi_schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update({**made.get("$defs", {}), "Error": _ERROR})
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _handle_errors(app: FastAPI) -> None:
    """Every error is answered with OpenAI's error object."""

    async def ours(_: Request, error: Exception) -> Response:
        return error_response(as_api_error(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {
            404: f"there is nothing at {request.url.path}; /docs lists what there is",
            405: f"{request.url.path} does not take {request.method}; /docs lists what it takes",
        }.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))

    async def validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = dict(error.errors()[0])
        param = ".".join(str(step) for step in first["loc"][1:]) or None
        return error_response(ApiError(400, f"{param}: {first['msg']}", param=param, code="invalid_value"))

    app.add_exception_handler(PixtralError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)


class RequestContext:
    """ASGI middleware: an identifier in X-Request-Id, and one log line for each request, without its content.

    The identifier is `scope["state"]["request_id"]`; what handlers put into `scope["state"]["log"]` is logged too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        id = given.decode() if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = id
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            _log.error("request failed", exc_info=error, extra={"request_id": id})
            if not status:
                await error_response(as_api_error(error))(scope, receive, send_with_id)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # of the route, so that clients cannot add label values
            scope["app"].state.server.metrics.requests.labels(path, status or 499).inc()
            level = logging.DEBUG if scope["path"] in _QUIET and status < 400 else logging.INFO
            _access_log.log(
                level,
                "request",
                extra={
                    "request_id": id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status or 499,
                    "seconds": round(time.perf_counter() - started, 4),
                    **scope["state"].get("log", {}),
                },
            )
