"""A server with the real page and answers that a test has written, for what no model says when asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pixtral.images.geometry import Grid, image_grid
from pixtral.server.images import Detail
from pixtral.server.page import PageFacts, StaticFiles, page_routes


def measure(width: int, height: int, detail: Detail) -> tuple[Grid, tuple[int, int]]:
    """As Pixtral-12B does; "low" is a quarter of the side."""
    grid = image_grid(width, height, longest_edge=256 if detail == "low" else 1024)
    return grid, grid.size()


async def pages(url: str, detail: Detail) -> list[tuple[int, int]]:
    """Three pages, whatever the file."""
    return [(700, 1024)] * 3


class Script:
    """What the server will say, and what it was asked.

    Attributes:
        pieces: of the answer; None breaks the connection, a dictionary is sent as it is.
        pause: seconds between them.
        refusal: (status, body, headers) instead of an answer.
        key: what requests have to carry.
        bodies: of the requests so far.
        gone: answers whose client has left before the end.
    """

    def __init__(self) -> None:
        self.pieces: list[str | dict[str, Any] | None] = ["Hello."]
        self.pause = 0.0
        self.refusal: tuple[int, Any, dict[str, str]] | None = None
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.gone = 0

    def left(self) -> bool:
        """Whether a client leaves before the end of its answer, in the next minute or before."""
        end = time.monotonic() + 60
        while not self.gone and time.monotonic() < end:
            time.sleep(0.01)
        return self.gone == 1


def application(script: Script, facts: PageFacts) -> FastAPI:
    """The page, /v1/models and /v1/chat/completions by the script."""
    app = FastAPI()
    app.include_router(page_routes(StaticFiles.read(), facts, measure, pages))

    def refused(request: Request) -> Response | None:
        if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
            return JSONResponse({"error": {"message": "wrong API key", "code": "invalid_api_key"}}, 401)
        if script.refusal and request.method == "POST":
            status, body, headers = script.refusal
            return JSONResponse(body, status, headers)
        return None

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return refused(request) or JSONResponse({"data": [{"id": "org/scripted", "max_model_len": 16384}]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        script.bodies.append(await request.json())
        return refused(request) or StreamingResponse(answer(), media_type="text/event-stream")

    async def answer() -> AsyncIterator[str]:
        done = False
        try:
            for piece in script.pieces:
                await asyncio.sleep(script.pause)
                if piece is None:
                    raise ConnectionResetError
                yield _event(piece if isinstance(piece, dict) else _chunk({"content": piece}))
            yield _event(_chunk({}, "stop"))
            usage = {"prompt_tokens": 90, "completion_tokens": len(script.pieces)}
            yield _event({"choices": [], "usage": usage}) + "data: [DONE]\n\n"
            done = True
        finally:
            script.gone += not done

    return app


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of an application on a port of loopback, until the block is left."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)
