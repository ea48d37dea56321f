"""The life of one request: counted, given to the engine, aborted when the client disconnects or the time is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Literal

from pixtral.engine.outputs import RequestOutput, Usage
from pixtral.engine.request import EngineRequest
from pixtral.errors import EngineError
from pixtral.server.errors import ApiError, as_api_error, unavailable
from pixtral.server.metrics import RequestTimes

if TYPE_CHECKING:
    from starlette.requests import Request

    from pixtral.server.state import ServerState

_log = logging.getLogger("pixtral.server")


class ActiveRequest:
    """A request that is queued or answered; it is counted until `close`, which must be called."""

    def __init__(self, state: ServerState, http: Request) -> None:
        """
        Raises:
            ApiError: the server takes no more requests now.
        """
        state.enter()
        self.id = uuid.uuid4().hex
        self.created = int(time.time())
        self._times = RequestTimes()
        self._state = state
        self._http = http
        self._ended_by: Literal["client", "time"] | None = None
        self._in_engine: set[str] = set()
        self._watcher = asyncio.create_task(self._wait_for_disconnect())
        seconds = state.settings.request_timeout
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end, "time")

    def close(self) -> None:
        """Abort what still runs, and record the metrics."""
        self._watcher.cancel()
        self._timer.cancel()
        self._abort()
        self._state.leave()
        self._times.observe(self._state.metrics)

    async def outputs(self, request: EngineRequest) -> AsyncIterator[RequestOutput]:
        """The outputs of the engine, until the answer is complete.

        Raises:
            ApiError: the engine refuses the request or fails, the client has disconnected, or the time is over.
        """
        if self._ended_by is not None:
            raise self._failure()
        self._in_engine.add(request.request_id)
        try:
            async for output in self._state.engine.generate(request):
                if output.finish_reason == "abort":
                    raise self._failure()
                self._times.note(output)
                if output.usage is not None:
                    self._count(output.usage, output.index)
                yield output
            self._in_engine.discard(request.request_id)
        except ApiError:
            raise
        except Exception as error:  # a request's own images, grammar or numbers may raise anything
            failure = as_api_error(error)
            if failure.status == 500:
                name = self._http.scope["state"]["request_id"]
                _log.error("request failed", exc_info=error, extra={"request_id": name})
            raise failure from error

    async def outputs_of_all(self, requests: Sequence[EngineRequest]) -> AsyncIterator[tuple[int, RequestOutput]]:
        """The outputs of several prompts as they come, each with the index of its prompt. Errors as in `outputs`."""
        queue: asyncio.Queue[tuple[int, RequestOutput | BaseException | None]] = asyncio.Queue()

        async def pump(index: int, request: EngineRequest) -> None:
            try:
                async for output in self.outputs(request):
                    queue.put_nowait((index, output))
                queue.put_nowait((index, None))
            except ApiError as error:
                queue.put_nowait((index, error))

        tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
        try:
            left = len(tasks)
            while left:
                index, item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield index, item
        finally:
            for task in tasks:
                task.cancel()

    def _count(self, usage: Usage, index: int) -> None:
        """Add the tokens of a choice to the log line of the request."""
        counts: dict[str, int] = self._http.scope["state"].setdefault("log", {})
        given = {"new_tokens": usage.completion_tokens}
        if index == 0:
            given |= {"prompt_tokens": usage.prompt_tokens, "image_tokens": usage.image_tokens}
            given |= {"cached_tokens": usage.cached_tokens}
        for name, count in given.items():
            counts[name] = counts.get(name, 0) + count

    async def _wait_for_disconnect(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self._end("client")

    def _end(self, by: Literal["client", "time"]) -> None:
        self._ended_by = self._ended_by or by
        self._abort()

    def _abort(self) -> None:
        for id in self._in_engine:
            self._state.spawn(self._abort_one(id))

    async def _abort_one(self, id: str) -> None:
        with contextlib.suppress(EngineError):  # it has stopped, and every request has got the error
            await self._state.engine.abort(id)

    def _failure(self) -> ApiError:
        if self._ended_by == "client":
            return ApiError(499, "the client has gone", code="client_closed_request")
        if self._ended_by == "time":
            return ApiError(
                408,
                f"the request took longer than {self._state.settings.request_timeout:g} s; ask for fewer tokens, or "
                "try when fewer others are waiting",
                type="server_error",
                code="request_timeout",
                headers={"x-should-retry": "false"},
            )
        return unavailable("the server is being stopped, and the answer could not be finished in time")
