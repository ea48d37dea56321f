"""One request on its way: in the queue, in the engine, ended by its answer, its client's leave or the time limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Literal

from pixtral.engine.output import Output
from pixtral.engine.request import EngineRequest
from pixtral.errors import EngineError
from pixtral.server.errors import ApiError, as_api_error, unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

    from pixtral.server.state import ServerState

_log = logging.getLogger("pixtral.server")


class Running:
    """Counts in when it is made, and out by `close`, which must be called."""

    def __init__(self, state: ServerState, http: Request) -> None:
        """
        Raises:
            ApiError: nobody may come in now.
        """
        state.enter()
        self.id = uuid.uuid4().hex
        self.created = int(time.time())
        self._state = state
        self._http = http
        self._ended_by: Literal["client", "time"] | None = None
        self._watcher = asyncio.create_task(self._watch())
        seconds = state.settings.request_timeout
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end, "time")
        self._ending: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Nothing more happens with it."""
        self._watcher.cancel()
        self._timer.cancel()
        self._state.leave()

    async def outputs(self, request: EngineRequest) -> AsyncIterator[Output]:
        """What the engine gives, until the answer is complete.

        Raises:
            ApiError: the engine refuses the request, or fails; the client has gone; the time is over.
        """
        if self._ended_by is not None:
            raise self._failure()
        try:
            async for output in self._state.engine.generate(request):
                if output.finish_reason == "abort":
                    raise self._failure()
                yield output
        except ApiError:
            raise
        except Exception as error:  # a request's own pictures, grammar or numbers may raise anything
            failure = as_api_error(error)
            if failure.status == 500:
                _log.error("request failed", exc_info=error, extra={"request": self.id})
            raise failure from error

    def check(self) -> None:
        """Stop here if the client has gone or the time is over."""
        if self._ended_by is not None:
            raise self._failure()

    async def _watch(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self._end("client")

    def _end(self, by: Literal["client", "time"]) -> None:
        self._ended_by = self._ended_by or by
        self._ending = asyncio.get_running_loop().create_task(self._abort())

    async def _abort(self) -> None:
        with contextlib.suppress(EngineError):  # it has stopped, and has told everybody
            await self._state.engine.abort(self.id)

    def _failure(self) -> ApiError:
        if self._ended_by == "client":
            return ApiError(499, "the client has gone", code="client_closed_request")
        if self._ended_by == "time":
            return ApiError(
                408,
                f"the request took longer than {self._state.settings.request_timeout:g} s; ask for fewer tokens, or "
                "try when fewer others are waiting",
                type="server_error", code="request_timeout", headers={"x-should-retry": "false"},
            )  # fmt: skip
        return unavailable("the server is being stopped, and the answer could not be finished in time")
