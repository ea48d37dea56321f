"""AnswerStream: the text of an answer piece by piece, and the finished answer at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pixtral.assistant.answer import Answer, FinishReason, Timings, Usage
from pixtral.engine.request import EngineRequest
from pixtral.errors import GenerationError

if TYPE_CHECKING:
    from pixtral.assistant.prompt import PreparedPrompt
    from pixtral.engine.shared_engine import RequestOutputs, SharedEngine


class AnswerStream(Iterator[str]):
    """Iterate for the text as it is written; `answer` is the whole of it.

    The request reaches the engine when the first piece is asked for. `stop()` ends the answer early; it may be called
    from a signal handler or another thread.
    """

    def __init__(
        self, engine: Callable[[], SharedEngine], request: EngineRequest, prompt: PreparedPrompt, load_seconds: float
    ) -> None:
        self._make_engine = engine
        self._engine: SharedEngine | None = None
        self._submitted = 0.0
        self._request = request
        self._prompt = prompt
        self._load_seconds = load_seconds
        self._outputs: RequestOutputs | None = None
        self._stopped = False
        self._text = ""
        self._answer: Answer | None = None
        self._listeners: list[Callable[[Answer], None]] = []
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The finished answer; what has not been read of the stream yet is run now."""
        for _ in self:
            pass
        if self._answer is None:
            raise GenerationError("the stream was broken off by an exception, so there is no answer; ask again")
        return self._answer

    def stop(self) -> None:
        """End the answer after the token in work; it keeps what was written, and its finish_reason is "abort"."""
        self._stopped = True

    def when_done(self, listener: Callable[[Answer], None]) -> None:
        """Call `listener` with the answer as soon as it is complete."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Queue the request now, so that it shares the engine's steps with those of other streams."""
        if self._outputs is None:
            self._submitted = time.perf_counter()
            self._engine = self._make_engine()
            self._outputs = self._engine.add_request(self._request)

    def close(self) -> None:
        """End the request, if it has not ended; there is no answer then."""
        if self._outputs is not None:
            self._outputs.close()

    def _run(self) -> Iterator[str]:
        if self._stopped:
            self._finish("abort", [], 0, 0.0, 0.0, 0.0)
            return
        self.start()
        outputs = self._outputs
        assert outputs is not None and self._engine is not None
        encode_seconds = first_token = decode_seconds = last = 0.0
        new_ids: list[int] = []
        stopped = False
        try:
            while True:
                # what other streams' steps gave to this one has not been read and does not count once it is stopped
                is_old = stopped and outputs.is_queued
                if self._stopped and not stopped:
                    stopped, is_old = True, outputs.is_queued
                    self._engine.abort(self._request.request_id)
                queued, clock = outputs.is_queued and not stopped, time.perf_counter()
                output = next(outputs)
                if output.error is not None:
                    raise output.error
                encode_seconds += output.encode_seconds
                if not is_old:
                    if new_ids:
                        decode_seconds += output.time - last if queued else time.perf_counter() - clock
                    elif output.token_ids:
                        first_token = output.time
                    last = output.time
                    new_ids += output.token_ids
                    self._text += output.text
                    if output.text:
                        yield output.text
                if output.finish_reason is not None:
                    break
            assert output.finish_reason != "error", "an error is raised"
            reason: FinishReason = "abort" if is_old else output.finish_reason
            cached = 0 if output.usage is None else output.usage.cached_tokens
            self._finish(reason, new_ids, cached, encode_seconds, first_token, decode_seconds)
        finally:
            outputs.close()

    def _finish(
        self,
        reason: FinishReason,
        new_ids: list[int],
        cached_tokens: int,
        encode_seconds: float,
        first_token: float,
        decode_seconds: float,
    ) -> None:
        prompt = self._prompt
        timings = Timings(
            load=self._load_seconds,
            prepare=prompt.seconds,
            image=encode_seconds,
            prompt=max(first_token - self._submitted - encode_seconds, 0.0),
            first_token=max(first_token - prompt.started, 0.0),
            per_token=decode_seconds / (len(new_ids) - 1) if len(new_ids) > 1 else 0.0,
            total=time.perf_counter() - prompt.started,
        )
        encoded = prompt.encoded
        usage = Usage(len(encoded.ids), encoded.num_image_tokens, len(new_ids), cached_tokens)
        self._answer = Answer(self._text, reason, usage, timings, prompt.images, prompt.continued(self._text))
        for listener in self._listeners:
            listener(self._answer)
