"""/health, /ready and /metrics: for whoever watches over the server."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pixtral.server.errors import unavailable
from pixtral.server.state import ServerState
from pixtral.server.stream import json_response


def status_routes() -> APIRouter:
    """The routes; none needs a key."""
    router = APIRouter(tags=["operation"])
    router.get("/health")(health)
    router.get("/ready")(ready)
    router.get("/metrics")(metrics)
    return router


async def health(http: Request) -> Response:
    """200 as long as the engine works, 503 when the server must be started anew."""
    state: ServerState = http.app.state.server
    if not (state.engine.is_alive or state.draining):
        raise unavailable("the engine has stopped; the server must be started anew")
    return json_response({"status": "ok"})


async def ready(http: Request) -> Response:
    """200 when requests are taken, 503 when the server is being stopped."""
    state: ServerState = http.app.state.server
    if state.draining or not state.engine.is_alive:
        raise unavailable("the server takes no requests")
    return json_response({"status": "ready", "model": state.model_name})


async def metrics(http: Request) -> Response:
    """Counters, gauges and histograms for Prometheus."""
    state: ServerState = http.app.state.server
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
