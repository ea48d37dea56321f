"""AsyncEngine: one thread owns the engine, every request has a queue, a client that disconnects aborts its request."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TypeAlias

from pixtral.engine.engine import Engine
from pixtral.engine.outputs import EngineStats, RequestOutput
from pixtral.engine.request import EngineRequest
from pixtral.errors import EngineError, PixtralError

Item: TypeAlias = "RequestOutput | BaseException"


@dataclasses.dataclass(frozen=True, eq=False)
class _Client:
    """The consumer of the outputs of one request."""

    request: EngineRequest
    loop: asyncio.AbstractEventLoop
    items: asyncio.Queue[Item]


class AsyncEngine:
    """An `Engine` for programs with an event loop; `async with AsyncEngine(engine) as engine: ...`

    The thread executes queued commands, makes a step, passes the outputs on, and starts again. An error that belongs to
    a request is raised to its client alone; one that stops the thread is raised to all clients, now and later.
    """

    def __init__(self, engine: Engine, *, interval: float = 0.0) -> None:
        """
        Args:
            engine: used by this object only.
            interval: seconds that tokens of short steps may be held back, to be passed on together with the next ones.
                The first and the last of an answer are never held back.
        """
        self._engine = engine
        self._interval = interval
        self._next_time = 0.0  # used by the thread alone, as the next two
        self._held: dict[tuple[str, int], RequestOutput] = {}
        self._begun: set[tuple[str, int]] = set()  # continuations that have had an output
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._clients: dict[str, _Client] = {}  # used by the thread alone
        self._lock = threading.Lock()  # of the next three, and of the order of commands in the inbox
        self._unfinished = 0
        self._refusal: str | None = "the engine has not been started; call start()"
        self._failure: BaseException | None = None
        self._closing = False  # used by the thread alone
        self._thread = threading.Thread(target=self._run, name="pixtral-engine", daemon=True)

    async def __aenter__(self) -> AsyncEngine:
        self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def start(self) -> None:
        """Start the thread; requests are accepted from now on."""
        with self._lock:
            self._refusal = None
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are accepted."""
        return self._refusal is None and self._failure is None and self._thread.is_alive()

    def stats(self) -> EngineStats:
        """State and counters of the engine."""
        return self._engine.stats()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of a request as they come, until all its continuations have ended.

        Leaving the loop, closing the generator or cancelling the task aborts the request.

        Raises:
            PromptError, GenerationError: the request cannot be honoured; see `Engine.add_request`.
            EngineError: the engine has stopped, or takes no more requests.
            Exception: whatever ended this request with "error".
        """
        client = _Client(request, asyncio.get_running_loop(), asyncio.Queue())
        self._submit(lambda: self._add(client), counts=True)
        left = request.params.n
        try:
            while left:
                item = await client.items.get()
                if isinstance(item, BaseException):
                    raise item
                if item.error is not None:
                    raise item.error
                left -= item.finish_reason is not None
                yield item
        finally:
            with self._lock:
                self._unfinished -= 1
            if left:
                with contextlib.suppress(EngineError):  # it has stopped, so there is nothing to abort
                    self._submit(lambda: self._abort(request.request_id, client))

    async def abort(self, request_id: str) -> None:
        """End a request: the last outputs of its continuations have finish_reason "abort"."""
        self._submit(lambda: self._abort(request_id, None))

    async def drain(self, grace: float | None = None) -> bool:
        """Accept no more requests and wait for those that are there.

        Args:
            grace: seconds, after which the rest is aborted; None waits without limit.

        Returns:
            Whether all ended without being aborted.
        """
        with self._lock:
            self._refusal = self._refusal or "the engine is being stopped and takes no more requests; try again later"
        deadline = None if grace is None else asyncio.get_running_loop().time() + grace
        while self._unfinished and self._thread.is_alive():
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                self._inbox.put(self._abort_all)
                return False
            await asyncio.sleep(0.01)
        return True

    async def close(self) -> None:
        """Stop the thread now and abort all requests."""
        with self._lock:
            self._refusal = self._refusal or "the engine has been closed"
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _submit(self, command: Callable[[], None], counts: bool = False) -> None:
        """Queue a command for the thread to execute before its next step."""
        with self._lock:
            if self._failure is not None or (counts and self._refusal is not None):
                raise self._error()
            self._unfinished += counts
            self._inbox.put(command)

    def _error(self) -> EngineError:
        if self._failure is None:
            return EngineError(self._refusal or "")
        error = EngineError(f"the engine has stopped: {type(self._failure).__name__}: {self._failure}; start it anew")
        error.__cause__ = self._failure
        return error

    # --- executed by the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._execute()
                if self._engine.has_unfinished:
                    self._pass_on(self._engine.step())
        except BaseException as error:  # every client has to be told, whatever it was
            with self._lock:
                self._failure = error
            while not self._inbox.empty():  # requests that were queued meanwhile
                self._inbox.get()()
            for client in self._clients.values():
                self._send([(client, self._error())])

    def _execute(self) -> None:
        """Execute all queued commands; wait for one when there is nothing else to do."""
        while not self._closing and (not self._inbox.empty() or not self._engine.has_unfinished):
            self._inbox.get()()

    def _add(self, client: _Client) -> None:
        if self._failure is not None:
            self._send([(client, self._error())])
            return
        try:
            self._engine.add_request(client.request)
        except PixtralError as error:
            self._send([(client, error)])
            return
        self._clients[client.request.request_id] = client

    def _abort(self, request_id: str, client: _Client | None) -> None:
        """Abort for a client only if the request is still its own; the name may have been reused."""
        if self._failure is None and (client is None or self._clients.get(request_id) is client):
            self._pass_on(self._engine.abort(request_id))

    def _abort_all(self) -> None:
        for request_id in list(self._clients):
            self._abort(request_id, None)

    def _stop(self) -> None:
        self._abort_all()
        self._closing = True

    def _pass_on(self, outputs: list[RequestOutput]) -> None:
        """Outputs to their clients: at once when an answer begins or ends, else at most every `interval` seconds."""
        held, now = self._held, time.monotonic()
        urgent = now >= self._next_time
        for output in outputs:
            place = output.request_id, output.index
            before = held.get(place)
            held[place] = output if before is None else before.joined(output)
            urgent = urgent or output.finish_reason is not None or place not in self._begun
        if not urgent:
            return
        self._held, self._next_time = {}, now + self._interval
        self._begun.update(held)
        self._send([(self._clients[output.request_id], output) for output in held.values()])
        for output in held.values():
            if output.finish_reason is not None:
                self._begun.discard((output.request_id, output.index))
            if output.finish_reason is not None and not self._engine.is_known(output.request_id):
                self._clients.pop(output.request_id, None)

    def _send(self, items: Iterable[tuple[_Client, Item]]) -> None:
        """One call into each event loop, however many clients it has."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Client, Item]]] = {}
        for client, item in items:
            by_loop.setdefault(client.loop, []).append((client, item))
        for loop, some in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, some)
            except RuntimeError:  # the event loop is closed, and its clients with it
                for client, _ in some:
                    self._inbox.put(lambda client=client: self._abort(client.request.request_id, client))  # type: ignore[misc]


def _put(items: list[tuple[_Client, Item]]) -> None:
    for client, item in items:
        client.items.put_nowait(item)
