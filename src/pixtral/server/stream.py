"""Server-sent events, written as bytes: the path that every token of every client takes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from json.encoder import encode_basestring as quoted
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pixtral.server.errors import ApiError

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
