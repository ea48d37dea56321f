"""A real server on loopback around the embedded model, one for the tests of a file."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

import uvicorn

import pixtral
from pixtral.server.run import server_config
from pixtral.server.settings import Settings
from pixtral.server.state import ServerState, state_of


class Live:
    """A server that runs: its address and its insides."""

    def __init__(self, url: str, state: ServerState, server: uvicorn.Server) -> None:
        self.url, self.state, self.server = url, state, server


@pytest.fixture(scope="session")
def tiny() -> Any:
    return pixtral.load()


@contextlib.contextmanager
def serving(assistant: Any, **settings: Any) -> Iterator[Live]:
    """A server in a thread, stopped in the end."""
    state = state_of(assistant, Settings(**{"max_num_seqs": 8, "kv_cache_mb": 32, **settings}))
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:  # without it asyncio leaves Nagle on: 40 ms an answer
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(server_config(state))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            threading.Event().wait(0.01)
        assert server.started
        try:
            yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", state, server)
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
    assert state.active == 0, "a request was not counted out"


@pytest.fixture(scope="module")
def live(tiny: Any) -> Iterator[Live]:
    with serving(tiny) as live:
        yield live
