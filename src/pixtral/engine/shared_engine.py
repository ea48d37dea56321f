"""SharedEngine: one engine for synchronous callers; any number of iterators, in one thread or several."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator

from pixtral.engine.engine import Engine
from pixtral.engine.outputs import RequestOutput
from pixtral.engine.request import EngineRequest
from pixtral.errors import EngineError


class SharedEngine:
    """The thread that waits for an output runs the next step for all requests, which therefore share steps.

    Steps are run by the callers' own threads, under a lock. When a step is interrupted (KeyboardInterrupt) or fails as
    a whole, the engine may be left in the middle of it: it is not used again, and `failure` says why.
    """

    def __init__(self, engine: Engine) -> None:
        """
        Args:
            engine: used through this object only.
        """
        self._engine = engine
        self._lock = threading.Lock()
        self._queues: dict[str, collections.deque[RequestOutput]] = {}
        # requests whose iterator is gone; no lock, since an iterator may be finalised by a thread that holds it
        self._dropped: collections.deque[str] = collections.deque()
        self.failure: BaseException | None = None

    def add_request(self, request: EngineRequest) -> RequestOutputs:
        """Queue a request; the iterator returns its outputs until all continuations have ended.

        Dropping or closing the iterator aborts the request.

        Raises:
            PromptError, GenerationError: see `Engine.add_request`.
            EngineError: the engine has failed.
        """
        with self._lock:
            self._check()
            queue: collections.deque[RequestOutput] = collections.deque()
            self._engine.add_request(request)
            self._queues[request.request_id] = queue
        return RequestOutputs(self, request, queue)

    def abort(self, request_id: str) -> None:
        """End a request; its iterator returns the last outputs, with finish_reason "abort"."""
        with self._lock:
            self._distribute(self._engine.abort(request_id))

    @property
    def cache_bytes(self) -> int:
        """Memory that keys, values and image features take now."""
        return self._engine.cache_bytes

    def drop(self, request_id: str) -> None:
        """End a request whose outputs are not read any more, before the next step."""
        self._dropped.append(request_id)

    def step(self, queue: collections.deque[RequestOutput]) -> None:
        """Run one step, unless another thread has made one that filled the queue."""
        with self._lock:
            if queue:
                return
            self._check()
            try:
                while self._dropped:
                    self._distribute(self._engine.abort(self._dropped.popleft()))
                self._distribute(self._engine.step())
            except BaseException as error:
                self.failure = error
                raise

    def _distribute(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if output.request_id in self._queues:
                self._queues[output.request_id].append(output)
        for output in outputs:
            if not self._engine.is_known(output.request_id):
                self._queues.pop(output.request_id, None)

    def _check(self) -> None:
        if self.failure is not None:
            raise EngineError(
                f"the engine was interrupted ({type(self.failure).__name__}: {self.failure}); start the request anew"
            ) from self.failure


class RequestOutputs(Iterator[RequestOutput]):
    """The outputs of one request; see `SharedEngine.add_request`."""

    def __init__(self, engine: SharedEngine, request: EngineRequest, queue: collections.deque[RequestOutput]) -> None:
        self._engine = engine
        self._request_id = request.request_id
        self._queue = queue
        self._left = request.params.n  # continuations that have not ended

    def __next__(self) -> RequestOutput:
        if not self._left:
            raise StopIteration
        while not self._queue:
            self._engine.step(self._queue)
        output = self._queue.popleft()
        self._left -= output.finish_reason is not None
        return output

    @property
    def is_queued(self) -> bool:
        """Whether the next output is there already."""
        return bool(self._queue)

    def close(self) -> None:
        """Abort the request, unless it has ended."""
        if self._left:
            self._left = 0
            self._engine.drop(self._request_id)

    def __del__(self) -> None:
        self.close()
