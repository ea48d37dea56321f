"""The application: routes, middleware, and errors in OpenAI's words."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from pixtral.errors import PixtralError
from pixtral.server.errors import ApiError, as_api_error
from pixtral.server.guard import Guard, guard_limits
from pixtral.server.openapi import Bodies, describe
from pixtral.server.page import StaticFiles, facts_of, measure_of, page_routes, pages_of
from pixtral.server.requests import RequestContext
from pixtral.server.routes_chat import chat_routes
from pixtral.server.routes_completions import completion_routes
from pixtral.server.routes_models import model_routes
from pixtral.server.routes_responses import response_routes
from pixtral.server.routes_status import status_routes
from pixtral.server.routes_tokens import token_routes
from pixtral.server.state import ServerState
from pixtral.server.stream import error_response


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
