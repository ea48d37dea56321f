"""Responses: JSON, server-sent events, and the parts of a choice: message, log probabilities, usage.

Chunks are written as text with their common parts encoded once, since every token of every client comes through here.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from json.encoder import encode_basestring as quoted
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pixtral.engine.outputs import RequestOutput, TokenLogprobs, Usage
from pixtral.server.errors import ApiError
from pixtral.text.protocol import Tokenizer

DONE = b"data: [DONE]\n\n"
Delta = dict[str, Any]
_LOWEST = -9999.0  # OpenAI's log probability of impossible tokens; JSON has no infinity


def json_response(content: Mapping[str, Any]) -> Response:
    """A complete answer."""
    data = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Response(data, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error as it is sent."""
    return Response(error.encoded(), error.status, error.headers, "application/json")


class EventStream(Response):
    """Sends events as they come; an error among them is an event of its own, since the status has been sent by then."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        """
        Args:
            events: each complete.
            close: called when the response has ended, for whatever reason.
        """
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self._events = events
        self._close = close
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; `ActiveRequest` notices when the client disconnects, which ends the events with an error."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except ApiError as error:
                await send({"type": "http.response.body", "body": b"data: %s\n\n" % error.encoded(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


class Chunks:
    """Encodes the chunks of one request's stream."""

    def __init__(self, kind: str, id: str, created: int, model: str, include_usage: bool) -> None:
        """
        Args:
            kind: "chat.completion.chunk" or "text_completion".
            id, created, model: of the request.
            include_usage: every chunk has "usage": null, and one at the end the usage.
        """
        self._head = (
            f'data: {{"id":{quoted(id)},"object":{quoted(kind)},"created":{created},"model":{quoted(model)},'
            '"system_fingerprint":null,"choices":['
        )
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"

    def delta(self, index: int, delta: str, logprobs: str = "null", finish: str | None = None) -> str:
        """A chunk of a chat completion; `delta` and `logprobs` are JSON."""
        return self._choice(index, f'"delta":{delta}', logprobs, finish)

    def text(self, index: int, text: str, logprobs: str = "null", finish: str | None = None) -> str:
        """A chunk of a completion; `logprobs` is JSON."""
        return self._choice(index, f'"text":{quoted(text)}', logprobs, finish)

    def usage(self, usage: Mapping[str, Any]) -> str:
        """The chunk at the end, which has no choices."""
        return f'{self._head}],"usage":{json.dumps(usage)}}}\n\n'

    def _choice(self, index: int, content: str, logprobs: str, finish: str | None) -> str:
        reason = "null" if finish is None else quoted(finish)
        return f'{self._head}{{"index":{index},{content},"logprobs":{logprobs},"finish_reason":{reason}}}{self._tail}'


class Reader(Protocol):
    """Reads the outputs of one choice into OpenAI's message: its text, and its tool calls."""

    def push(self, output: RequestOutput) -> list[Delta]:
        """The deltas of one output."""
        ...

    def message(self) -> dict[str, Any]:
        """The message, after the last output."""
        ...

    def finish_reason(self, output: RequestOutput) -> str:
        """Why the choice ended, by its last output."""
        ...


class TextReader:
    """A choice that is text only."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def push(self, output: RequestOutput) -> list[Delta]:
        """The new text."""
        if not output.text:
            return []
        self._pieces.append(output.text)
        return [{"content": output.text}]

    def message(self) -> dict[str, Any]:
        """The text."""
        return {"role": "assistant", "content": "".join(self._pieces), "refusal": None}

    def finish_reason(self, output: RequestOutput) -> str:
        """As the engine gives it."""
        assert output.finish_reason is not None
        return output.finish_reason


class TokenNames:
    """Tokens as text and bytes, for log probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.of = functools.lru_cache(4096)(self._of)

    def content(self, logprobs: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
        """The "content" of a choice's log probabilities."""
        return [
            {**self._entry(one.token, one.logprob), "top_logprobs": [self._entry(*pair) for pair in one.top]}
            for one in logprobs
        ]

    def _of(self, token: int) -> tuple[str, list[int] | None]:
        data = self._tokenizer.id_to_bytes(token)
        if data is None:
            return self._tokenizer.ids_to_text([token], False), None
        return data.decode("utf-8", "replace"), list(data)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self.of(token)
        return {"token": text, "logprob": finite(logprob), "bytes": data}


def finite(logprob: float) -> float:
    """A log probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else _LOWEST


class UsageSum:
    """Tokens of all choices of a request; each prompt counts once."""

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = self.image_tokens = 0

    def add(self, usage: Usage, index: int) -> None:
        """Add a choice that has ended, the `index`th of its prompt."""
        self.completion_tokens += usage.completion_tokens
        if index == 0:  # the other choices find the prompt in the cache because of this one
            self.prompt_tokens += usage.prompt_tokens
            self.image_tokens += usage.image_tokens
            self.cached_tokens += usage.cached_tokens

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's usage object; image tokens are part of the prompt's."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "image_tokens": self.image_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
