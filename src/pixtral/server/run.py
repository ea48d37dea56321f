"""Run the server: take the port, load the model, answer, and stop without cutting anybody off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

from pixtral.errors import ConfigError
from pixtral.server.settings import Settings

try:
    import uvicorn

    from pixtral.server.app import make_app
except ImportError as error:
    from pixtral.errors import MissingDependency

    raise MissingDependency(
        f"the server needs the package {error.name!r}, which is not installed; pip install 'pixtral[server]'"
    ) from error
from pixtral.server.connections import limited_protocol
from pixtral.server.logs import configure_logs
from pixtral.server.state import ServerState, load_state

_log = logging.getLogger("pixtral.server")
_LAST_WORDS = 5.0  # seconds for responses to be written after the last answer has ended


def run(settings: Settings, remarks: Sequence[str] = ()) -> None:
    """Serve until a signal says otherwise.

    Args:
        settings: of the server.
        remarks: warnings to be logged first.

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
        gc.freeze()  # what has been loaded stays; collections that look through all of it would hold up every answer
        listening.listen(server.config.backlog)  # whoever reads the next line may connect at once
        print(f"pixtral serves {state.model_name} at {address_of(settings.host, listening)}", flush=True)
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket with this address; connections are taken when the server runs."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            if sys.platform != "win32":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            stack.pop_all()  # it is kept
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}; choose another") from error
    return listening


def address_of(host: str, listening: socket.socket) -> str:
    """For a browser on this machine."""
    port = listening.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def server_config(state: ServerState) -> uvicorn.Config:
    """uvicorn, with its own log of requests and its own name left out."""
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
        timeout_graceful_shutdown=int(_LAST_WORDS),
    )


class Server(uvicorn.Server):
    """Stops in two steps: at the first signal new requests get 503 and running ones go on; at the second it ends."""

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
        """A signal has come."""
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
            await state.wait_until_idle(_LAST_WORDS)
        self.should_exit = True
