"""The guard in front of the application: over real sockets, where bodies are long, slow, or never end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from pixtral.server.guard import Guard, GuardLimits, host_name
from pixtral.server.run import limited_protocol

Say = Callable[[str], bytes]
sending = threading.Event()  # while somebody is sent /stream


def soon(is_so: Callable[[], bool]) -> bool:
    """Whether it is so before a minute is over."""
    end = time.monotonic() + 60
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body; /stream sends until its client has gone, or for a minute."""
    if scope["type"] != "http":
        return
    message = await receive()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/stream":
        gone, end = asyncio.ensure_future(receive()), time.monotonic() + 60
        sending.set()
        while not gone.done() and time.monotonic() < end:
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await asyncio.sleep(0)
        sending.clear()
        gone.cancel()
    body = f"{len(message['body'])} {message['more_body']}".encode()
    await send({"type": "http.response.body", "body": body, "more_body": False})


@contextmanager
def running(limits: GuardLimits, **protocol: float) -> Iterator[tuple[int, Guard]]:
    """A server with the guard; its port."""
    guard = Guard(echo, limits)
    config = uvicorn.Config(
        guard, port=0, log_level="error", lifespan="off", http=limited_protocol(**protocol), ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1], guard
    server.should_exit = server.force_exit = True
    thread.join(10)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def conversation(port: int, *parts: bytes, pause: float = 0.0, wait: float = 60.0) -> bytes:
    """What comes back on a plain socket, until the other side closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as sock:
        for part in parts:
            try:
                sock.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        received = b""
        while True:
            try:
                data = sock.recv(1 << 16)
            except ConnectionResetError:
                return received
            if not data:
                return received
            received += data


def test_bodies_pass_in_one_piece() -> None:
    with running(GuardLimits(max_body=1_000_000)) as (port, guard):
        url = f"http://127.0.0.1:{port}/"
        assert httpx.post(url, content=bytes(1_000_000)).text == "1000000 False"
        assert httpx.post(url, content=iter([b"ab", b"c" * 70_000, b""])).text == "70002 False"
        assert httpx.get(url).text == "0 False"
        assert guard._held == 0


def test_a_body_that_is_announced_too_long() -> None:
    with running(GuardLimits(max_body=1000)) as (port, guard):
        answer = httpx.post(f"http://127.0.0.1:{port}/", content=bytes(5_000_000))
        assert answer.status_code == 413
        assert error_of(answer)["message"].startswith("found a body of 5,000,000 bytes; expected at most 1,000")
        assert error_of(answer)["code"] == "body_too_large"
        assert guard._held == 0


def test_a_body_that_only_turns_out_too_long() -> None:
    with running(GuardLimits(max_body=100_000)) as (port, guard):
        answer = httpx.post(f"http://127.0.0.1:{port}/", content=(bytes(50_000) for _ in range(100)))
        assert answer.status_code == 413
        assert "more than 100,000" in error_of(answer)["message"]
        assert guard._held == 0


def test_all_bodies_together_have_a_limit() -> None:
    with running(GuardLimits(max_body=1000, max_bodies=1500)) as (port, guard):
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            waiting.sendall(head + bytes(900))
            assert soon(lambda: guard._held == 900)
            answer = httpx.post(f"http://127.0.0.1:{port}/", content=bytes(1000))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert httpx.post(f"http://127.0.0.1:{port}/", content=bytes(500)).text == "500 False"
        assert soon(lambda: guard._held == 0)  # the one who waited has gone
        assert httpx.post(f"http://127.0.0.1:{port}/", content=bytes(1000)).text == "1000 False"


def test_a_body_that_drips() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    with running(GuardLimits(body_patience=0.5)) as (port, guard):
        answer = conversation(port, head, *[b"a"] * 15, pause=0.1)
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_slow"
        assert guard._held == 0


def test_a_large_body_gets_the_time_it_needs() -> None:
    """Slower than the patience, but steady."""
    with running(GuardLimits(body_patience=0.5, body_rate=300)) as (port, _):  # ten seconds more for each part
        parts = (time.sleep(0.1) or bytes(3000) for _ in range(8))
        assert httpx.post(f"http://127.0.0.1:{port}/", content=parts).text == "24000 False"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx-a: "])
def test_headers_that_never_end(sent: bytes) -> None:
    with running(GuardLimits(), header_timeout=0.4) as (port, _):
        started = time.monotonic()
        answer = conversation(port, *[bytes([byte]) for byte in sent], pause=0.005)
        assert time.monotonic() - started > 0.3
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_slow"


def test_the_next_request_of_a_connection_has_the_same_limit() -> None:
    with running(GuardLimits(), header_timeout=0.4) as (port, _):
        answer = conversation(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP", pause=0.1)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"headers_too_slow" in answer


def test_a_long_answer_is_not_cut_by_the_limit_on_headers() -> None:
    with (
        running(GuardLimits(), header_timeout=0.3) as (port, _),
        httpx.stream("GET", f"http://127.0.0.1:{port}/stream") as answer,
    ):
        started = time.monotonic()
        for _ in answer.iter_raw():
            if time.monotonic() - started > 0.8:
                break
        assert time.monotonic() - started > 0.8


def test_a_client_that_stops_reading_is_let_go() -> None:
    with (
        running(GuardLimits(), write_timeout=0.4) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=60) as sock,
    ):
        sock.sendall(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        assert sending.wait(60)
        started = time.monotonic()
        assert soon(lambda: not sending.is_set())
        assert time.monotonic() - started < 30, "the server waited until the answer was through"


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "Basic one", "one", "Bearer one two", "bearer ONE"]
)
def test_wrong_keys(header: str | None) -> None:
    limits = GuardLimits(api_keys=("one", "two"), open_paths=frozenset({"/health"}))
    headers = {} if header is None else {"Authorization": header}

    async def ask(client: httpx.AsyncClient) -> None:
        refused = await client.post("/v1/chat/completions", headers=headers, content=b"{}")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert error_of(refused)["code"] == "invalid_api_key"
        assert "one" not in error_of(refused)["message"].split() and "wrong" not in refused.text
        assert (await client.get("/health", headers=headers)).status_code == 200
        assert (await client.get("/health/..", headers=headers)).status_code == 401

    inside(limits, ask)


def test_right_keys() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for header in ("Bearer one", "bearer two"):
            assert (await client.post("/x", headers={"Authorization": header}, content=b"{}")).status_code == 200

    inside(GuardLimits(api_keys=("one", "two")), ask)


def test_a_wrong_key_is_refused_before_its_body_is_read() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"
    with (
        running(GuardLimits(api_keys=("one",))) as (port, guard),
        socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
    ):
        sock.sendall(head + bytes(100))
        assert sock.recv(12) == b"HTTP/1.1 401"
        assert guard._held == 0


def test_hosts_and_origins_without_a_key() -> None:
    limits = GuardLimits(hosts=("localhost", "127.0.0.1", "::1"), origins=("https://allowed.example",))

    async def ask(client: httpx.AsyncClient) -> None:
        async def status(method: str, **headers: str) -> int:
            return (await client.request(method, "/", headers=headers, content=b"{}")).status_code

        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"):
            assert await status("POST", host=host) == 200
        for host in ("rebound.example", "localhost.evil.example:8000", "", "10.0.0.1"):
            assert await status("GET", host=host) == 403
        for origin, host in (("http://localhost:8000", "localhost:8000"), ("https://allowed.example", "localhost")):
            assert await status("POST", host=host, origin=origin) == 200
        for origin in ("https://evil.example", "null", "http://localhost:9000", "http://localhost.evil.example"):
            assert await status("POST", host="localhost:8000", origin=origin) == 403
            assert await status("GET", host="localhost:8000", origin=origin) == 200

    inside(limits, ask)


def test_web_sockets_are_refused() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(echo, GuardLimits())({"type": "websocket", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_names_in_host_headers() -> None:
    assert [host_name(host) for host in ("a:1", "A", "[::1]:80", "[::1]", "::1", "")] == [
        "a",
        "a",
        "::1",
        "::1",
        "::1",
        "",
    ]


def inside(limits: GuardLimits, ask: Callable[[httpx.AsyncClient], Any]) -> None:
    """Ask without sockets."""

    async def once() -> None:
        transport = httpx.ASGITransport(app=Guard(echo, limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await ask(client)

    asyncio.run(once())
