"""Server-sent events, written as bytes: the path that every token of every client takes."""

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


def json_response(content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """A whole answer."""
    data = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Response(data, headers=headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error as it is sent."""
    return Response(error.encoded(), error.status, error.headers, "application/json")


class EventStream(Response):
    """Sends pieces as they come.

    An error after the first piece is an event of its own, since the status has been sent by then.
    """

    def __init__(
        self, pieces: AsyncIterator[bytes], close: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            pieces: events, complete.
            close: called when nothing more is sent, whatever the reason.
            headers: beside the usual ones.
        """
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self._pieces = pieces
        self._close = close
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI; the client's leave is noticed by whoever makes the pieces."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except ApiError as error:
                await send({"type": "http.response.body", "body": b"data: %s\n\n" % error.encoded(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


class Chunks:
    """Writes the chunks of one request. What they have in common is written once."""

    def __init__(self, kind: str, id: str, created: int, model: str, include_usage: bool) -> None:
        """
        Args:
            kind: "chat.completion.chunk" or "text_completion".
            id, created, model: of the request.
            include_usage: every chunk says "usage": null, and one at the end says what it was.
        """
        self._head = (
            f'data: {{"id":{quoted(id)},"object":{quoted(kind)},"created":{created},"model":{quoted(model)},'
            '"system_fingerprint":null,"choices":['
        )
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"

    def delta(self, index: int, delta: str, logprobs: str = "null", finish: str | None = None) -> str:
        """A chunk of a chat; `delta` and `logprobs` are JSON."""
        reason = "null" if finish is None else quoted(finish)
        return (
            f'{self._head}{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
            f"{self._tail}"
        )

    def text(self, index: int, text: str, logprobs: str = "null", finish: str | None = None) -> str:
        """A chunk of a completion."""
        reason = "null" if finish is None else quoted(finish)
        return (
            f'{self._head}{{"index":{index},"text":{quoted(text)},"logprobs":{logprobs},"finish_reason":{reason}}}'
            f"{self._tail}"
        )

    def usage(self, usage: Mapping[str, Any]) -> str:
        """The chunk at the end that holds nothing but the usage."""
        return f'{self._head}],"usage":{json.dumps(usage)}}}\n\n'


# FOLDED pixtral.server.streaming: From the engine's outputs to the choices of an answer: texts or tool calls, log probabilities, ends, usage.


Delta = dict[str, Any]
_LOWEST = -9999.0  # OpenAI's number for impossible; JSON has no infinity


class Reader(Protocol):
    """Reads what the model says in one choice: text, tool calls, whatever it is, in the words of OpenAI's deltas."""

    def push(self, output: RequestOutput) -> list[Delta]:
        """What is certain with this output."""
        ...

    def message(self) -> dict[str, Any]:
        """The whole message; asked for once, when the last output has come."""
        ...

    def finish_reason(self, output: RequestOutput) -> str:
        """Why the choice ended; asked for with its last output."""
        ...


class TextReader:
    """An answer that is text."""

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
        """The engine's own."""
        assert output.finish_reason is not None
        return output.finish_reason


class TokenNames:
    """Tokens as text and bytes, for log probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.of = functools.lru_cache(4096)(self._of)

    def _of(self, token: int) -> tuple[str, list[int] | None]:
        data = self._tokenizer.id_to_bytes(token)
        if data is None:
            return self._tokenizer.ids_to_text([token], False), None
        return data.decode("utf-8", "replace"), list(data)

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """One token in OpenAI's words."""
        text, data = self.of(token)
        return {"token": text, "logprob": finite(logprob), "bytes": data}

    def content(self, logprobs: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
        """The "content" of a choice's log probabilities."""
        return [
            {**self.entry(one.token, one.logprob), "top_logprobs": [self.entry(*pair) for pair in one.top]}
            for one in logprobs
        ]


def finite(logprob: float) -> float:
    """A number that JSON has."""
    return logprob if math.isfinite(logprob) else _LOWEST


class UsageSum:
    """Tokens of all choices of a request; its prompt counts once."""

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = self.image_tokens = 0

    def add(self, usage: Usage, index: int) -> None:
        """One choice has ended."""
        self.completion_tokens += usage.completion_tokens
        if index == 0:  # the other choices find the prompt in the cache because of this one
            self.prompt_tokens, self.image_tokens = usage.prompt_tokens, usage.image_tokens
            self.cached_tokens = usage.cached_tokens

    def join(self, other: UsageSum) -> None:
        """Another prompt of the same request."""
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.image_tokens += other.image_tokens

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's words; image tokens are part of the prompt's."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "image_tokens": self.image_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
