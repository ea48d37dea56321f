"""Run the server: open the port, load the model, serve, and stop gracefully; its log lines and connection limits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from pixtral.errors import ConfigError, MissingDependency
from pixtral.server.errors import ApiError
from pixtral.server.settings import Settings
from pixtral.server.state import ServerState, load_state

try:
    import uvicorn

    from pixtral.server.app import make_app
except ImportError as error:
    raise MissingDependency(
        f"the server needs the package {error.name!r}, which is not installed; pip install 'pixtral[server]'"
    ) from error

_log = logging.getLogger("pixtral.server")
_FLUSH_SECONDS = 5.0  # for responses to be written after the last answer has ended
_STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


def run(settings: Settings, remarks: Sequence[str] = ()) -> None:
    """Serve until a signal.

    Args:
        settings: of the server.
        remarks: warnings about the settings, logged first.

    Raises:
        ConfigError: the address cannot be taken.
        PixtralError: the model cannot be loaded.
    """
    configure_logs(settings.log_format, settings.log_level)
    for remark in remarks:
        _log.warning(remark)
    with listen(settings.host, settings.port) as listening:  # before the model is loaded: that may take minutes
        state = load_state(settings)
        server = Server(server_config(state), state)
        gc.freeze()  # loaded objects stay; collections that traverse all of them would delay every answer
        listening.listen(server.config.backlog)  # before the address is printed: clients may connect at once
        print(f"pixtral serves {state.model_name} at {address_of(settings.host, listening)}", flush=True)
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            if sys.platform != "win32":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            stack.pop_all()  # it stays open
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}; choose another") from error
    return listening


def address_of(host: str, listening: socket.socket) -> str:
    """The URL for a browser on this machine."""
    port = listening.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))  # noqa: S104  compared, not bound to
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def server_config(state: ServerState) -> uvicorn.Config:
    """uvicorn without its own access log and server header."""
    return uvicorn.Config(
        make_app(state),
        http=limited_protocol(),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(_FLUSH_SECONDS),
    )


class Server(uvicorn.Server):
    """Stops gracefully: after the first signal new requests get 503 and running ones go on; the second ends it."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._state.draining or self._loop is None:
            self.should_exit = self.force_exit = True
            if self._loop is None:
                raise KeyboardInterrupt
            return
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._stop, signal.Signals(sig).name)

    def _stop(self, reason: str) -> None:
        self._draining = asyncio.ensure_future(self.drain(reason))

    async def drain(self, reason: str) -> None:
        """Let running answers finish within the grace period, end the others, and stop."""
        state, seconds = self._state, self._state.settings.grace_period
        state.draining = True
        _log.info("stopping", extra={"reason": reason, "active": state.active, "grace_period": seconds})
        if not await state.wait_until_idle(seconds):
            _log.warning("answers are cut off", extra={"active": state.active})
            await state.engine.drain(0)
            await state.wait_until_idle(_FLUSH_SECONDS)
        self.should_exit = True


def limited_protocol(header_timeout: float = 15.0, write_timeout: float = 60.0) -> type[asyncio.Protocol]:
    """uvicorn's protocol with time limits on headers and on unread responses, for `uvicorn.Config(http=...)`.

    Args:
        header_timeout: seconds from a connection, or the first byte of its next request, to the end of the headers.
        write_timeout: seconds that the send buffer may stay full.
    """
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:  # httptools is optional; h11 is plain Python
        from uvicorn.protocols.http.h11_impl import H11Protocol as base

    class LimitedProtocol(base):  # type: ignore[misc]
        """uvicorn itself limits the time between requests only: a client could hold a connection by single bytes."""

        _slow_headers: asyncio.TimerHandle | None = None
        _slow_reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_idle():
                self._expect_headers()
            else:
                _cancel(self._slow_headers)
                self._slow_headers = None

        def connection_lost(self, exc: Exception | None) -> None:
            _cancel(self._slow_headers, self._slow_reader)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            _cancel(self._slow_reader)
            self._slow_reader = self.loop.call_later(write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            _cancel(self._slow_reader)
            super().resume_writing()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect_headers(self) -> None:
            if self._slow_headers is None:
                self._slow_headers = self.loop.call_later(header_timeout, self._refuse_slow_headers)

        def _refuse_slow_headers(self) -> None:
            self._slow_headers = None
            if self._is_idle() and not self.transport.is_closing():
                self.transport.write(_slow_headers_response(header_timeout))
                self.transport.close()

    return LimitedProtocol


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


def _slow_headers_response(seconds: float) -> bytes:
    body = ApiError(
        408, f"the headers did not come within {seconds:g} seconds; send them again", code="headers_too_slow"
    ).encoded()
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


def configure_logs(format: str, level: str) -> None:
    """One handler on stderr for the server's loggers and uvicorn's.

    Args:
        format: "text" or "json".
        level: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    for name in ("pixtral.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    if level == "info":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it logs every start and stop


class TextLines(logging.Formatter):
    """Log records as `2026-01-01T00:00:00.000Z INFO request method=GET path=/v1/models status=200`."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; the traceback of an error on further lines."""
        words = [f"{_time(record)} {record.levelname} {record.getMessage()}"]
        words += [f"{name}={_word(value)}" for name, value in _extra(record).items()]
        return " ".join(words) + "".join(f"\n    {line}" for line in _traceback(record))


class JsonLines(logging.Formatter):
    """Log records as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        line |= _extra(record)
        if lines := _traceback(record):
            line["error"] = lines
        return json.dumps(line, default=str)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _word(value: object) -> str:
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text and text else json.dumps(text)


def _traceback(record: logging.LogRecord) -> list[str]:
    """The traceback of an error, without its message: that may quote what a client sent."""
    if not record.exc_info or record.exc_info[1] is None:
        return []
    error = record.exc_info[1]
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames] + [type(error).__name__]
