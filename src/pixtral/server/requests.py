"""What every request gets: an identifier in X-Request-Id, and one line in the log that holds nothing of its content."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixtral.server.errors import as_api_error
from pixtral.server.stream import error_response

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
