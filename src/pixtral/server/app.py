"""The application: routes, middleware, and errors in OpenAI's words."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
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
from pixtral.server.protocol import Bodies, describe
from pixtral.server.routes_chat import chat_routes
from pixtral.server.routes_completions import completion_routes
from pixtral.server.routes_info import model_routes, status_routes, token_routes
from pixtral.server.routes_responses import response_routes
from pixtral.server.state import ServerState
from pixtral.server.streaming import error_response

# FOLDED pixtral.server.app: What every request gets: an identifier in X-Request-Id, and one line in the log that holds nothing of its content.


_failures = logging.getLogger("pixtral.server")
_log = logging.getLogger("pixtral.server.access")
_GOOD = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/health", "/ready", "/metrics")


class RequestContext:
    """ASGI middleware; `scope["state"]["request_id"]` is the identifier."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        id = given.decode() if _GOOD.fullmatch(given) else f"req_{uuid.uuid4().hex}"
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
            _failures.error("request failed", exc_info=error, extra={"request_id": id})
            if not status:
                await error_response(as_api_error(error))(scope, receive, send_with_id)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # of the route: nobody can make up more of them
            scope["app"].state.server.metrics.requests.labels(path, status or 499).inc()
            level = logging.DEBUG if scope["path"] in _QUIET and status < 400 else logging.INFO
            _log.log(
                level,
                "request",
                extra={
                    "request_id": id, "method": scope["method"], "path": scope["path"], "status": status or 499,
                    "seconds": round(time.perf_counter() - started, 4), **scope["state"].get("log", {}),
                },
            )  # fmt: skip


def make_app(state: ServerState) -> FastAPI:
    """The application around a model that is loaded. Its lifespan starts and stops the engine."""
    from pixtral import __version__

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with state.engine:
            yield
        await state.close()

    app = FastAPI(title="pixtral", version=__version__, lifespan=lifespan, redoc_url=None)
    app.state.server = state
    bodies = Bodies()
    for routes in (
        chat_routes(bodies),
        completion_routes(bodies),
        response_routes(bodies),
        token_routes(bodies),
        model_routes(),
        status_routes(),
    ):
        app.include_router(routes)
    static = StaticFiles.read()
    app.include_router(page_routes(static, facts_of(state), measure_of(state), pages_of(state)))
    describe(app, bodies)
    _handle_errors(app)
    app.add_middleware(Guard, limits=guard_limits(state.settings, static.paths))
    if origins := state.settings.cors_origin:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"], max_age=600,
        )  # fmt: skip
    app.add_middleware(RequestContext)  # the last one added is the outermost
    return app


def _handle_errors(app: FastAPI) -> None:
    """Whatever goes wrong has OpenAI's body."""

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
