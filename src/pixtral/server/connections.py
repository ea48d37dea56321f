"""No connection is held for ever: uvicorn's protocol with time limits on headers and on clients that stop reading."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from pixtral.server.errors import ApiError


def limited_protocol(header_timeout: float = 15.0, write_timeout: float = 60.0) -> type[asyncio.Protocol]:
    """A class for `uvicorn.Config(http=...)`.

    Args:
        header_timeout: seconds from a connection, or the first byte of its next request, to the end of the headers.
        write_timeout: seconds that a client may leave a full buffer unread.
    """
    base: Any = _fastest()

    class LimitedProtocol(base):  # type: ignore[misc]
        """uvicorn knows a limit between requests only; a client could hold a connection by a byte now and then."""

        _slow_headers: asyncio.TimerHandle | None = None
        _slow_reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._between_requests():
                self._expect_headers()
            else:
                _end(self._slow_headers)
                self._slow_headers = None

        def connection_lost(self, exc: Exception | None) -> None:
            _end(self._slow_headers, self._slow_reader)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            _end(self._slow_reader)
            self._slow_reader = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            _end(self._slow_reader)
            super().resume_writing()

        def _between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect_headers(self) -> None:
            if self._slow_headers is None:
                self._slow_headers = self.loop.call_later(header_timeout, self._give_up)

        def _give_up(self) -> None:
            self._slow_headers = None
            if self._between_requests() and not self.transport.is_closing():
                self.transport.write(_too_slow(header_timeout))
                self.transport.close()

    return LimitedProtocol


def _fastest() -> object:
    """uvicorn's protocol on httptools where that is installed, else the one in plain Python."""
    try:
        importlib.import_module("httptools")
    except ImportError:
        return importlib.import_module("uvicorn.protocols.http.h11_impl").H11Protocol
    return importlib.import_module("uvicorn.protocols.http.httptools_impl").HttpToolsProtocol


def _end(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


def _too_slow(seconds: float) -> bytes:
    body = ApiError(
        408, f"the headers did not come within {seconds:g} seconds; send them again", code="headers_too_slow"
    ).encoded()
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body
