"""A small asynchronous client for OpenAI-compatible servers: Python's library only, little time per chunk.

Clients and server share the cores of a machine, so a client that spends a tenth of a millisecond on every token would
be measured together with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import urlsplit


class HttpError(Exception):
    """An answer other than 200, or none."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text[:400]}")
        self.status = status


class Connection:
    """One connection, which is opened when it is needed and kept while the server keeps it."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        self._host, self._secure = parts.hostname or "127.0.0.1", parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, path: str) -> bytes:
        """The body behind a path."""
        return b"".join([part async for part in self._exchange("GET", path, b"")])

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        answer: dict[str, Any] = json.loads(
            b"".join([part async for part in self._exchange("POST", path, json.dumps(body).encode())])
        )
        return answer

    async def events(self, path: str, body: bytes) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed request as they come; leaving the loop early closes the connection.

        Raises:
            HttpError: another status than 200, an event that is an error, or an end without [DONE].
        """
        rest, done = b"", False
        async with contextlib.aclosing(self._exchange("POST", path, body)) as parts:
            async for part in parts:
                rest += part
                while (end := rest.find(b"\n\n")) >= 0:
                    event, rest = rest[:end], rest[end + 2 :]
                    if not event.startswith(b"data:"):
                        continue
                    data = event[5:].strip()
                    if data == b"[DONE]":
                        done = True
                        continue
                    content = json.loads(data)
                    if "error" in content:
                        raise HttpError(200, json.dumps(content["error"]))
                    yield content
        if not done:
            raise HttpError(200, "the stream ended without [DONE]")

    def close(self) -> None:
        """Drop the connection, whatever is under way."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        head = (
            f"{method} {self._path}{path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n{self._key}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        complete = False
        try:
            reader, status, headers = await self._begin(head + body)
            parts = _body(reader, headers)
            if status != 200:
                raise HttpError(status, b"".join([part async for part in parts]).decode(errors="replace"))
            async for part in parts:
                yield part
            complete = headers.get("connection", "").lower() != "close"
        except (OSError, asyncio.IncompleteReadError) as error:
            raise HttpError(0, f"{type(error).__name__}: {error}") from error
        finally:
            if not complete:
                self.close()

    async def _begin(self, request: bytes) -> tuple[asyncio.StreamReader, int, dict[str, str]]:
        """Send, and read status and headers; a kept connection that the server has closed meanwhile is opened anew."""
        for kept in (True, False):
            if self._writer is None:
                context = ssl.create_default_context() if self._secure else None
                self._reader, self._writer = await asyncio.open_connection(
                    self._host, self._port, ssl=context, limit=1 << 20
                )
                kept = False
            assert self._reader is not None
            try:
                self._writer.write(request)
                await self._writer.drain()
                head = await self._reader.readuntil(b"\r\n\r\n")
                break
            except (OSError, asyncio.IncompleteReadError):
                self.close()
                if not kept:
                    raise
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:]) if name
        }
        assert self._reader is not None
        return self._reader, int(lines[0].split()[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body in the pieces in which it comes."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while part := await reader.read(1 << 16):
            yield part
