"""/v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pixtral.server.state import ServerState
from pixtral.server.stream import json_response


def model_routes() -> APIRouter:
    """The list, and one by its name."""
    router = APIRouter(tags=["OpenAI"])
    router.get("/v1/models")(list_models)
    router.get("/v1/models/{name:path}")(retrieve_model)
    return router


async def list_models(http: Request) -> Response:
    """The one model that there is."""
    return json_response({"object": "list", "data": [_model(http.app.state.server)]})


async def retrieve_model(http: Request, name: str) -> Response:
    """A model by its name."""
    state: ServerState = http.app.state.server
    state.check_model(name)
    return json_response(_model(state))


def _model(state: ServerState) -> dict[str, Any]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.created,
        "owned_by": "pixtral",
        "max_model_len": state.max_model_len,
    }
