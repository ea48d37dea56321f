"""Everything that people send by mistake or on purpose: 4xx with a message of use, and nobody else notices anything."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server.conftest import Live, serving
from server.image_files import data_uri, encoded, hostile

from pixtral.server.errors import validation_error

CHAT = "/v1/chat/completions"
HOSTILE = hostile()
STREAMED = {
    "messages": [{"role": "user", "content": "Tell me something long."}],
    "temperature": 0,
    "max_tokens": 40,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Live]:
    with serving(tiny, max_body_mb=24.0, request_timeout=60.0) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def text_of(client: httpx.Client) -> str:
    """The answer of a client that does everything right."""
    with client.stream("POST", CHAT, json=STREAMED) as answer:
        assert answer.status_code == 200
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.fixture(autouse=True, scope="module")
def neighbour(server: Live) -> Iterator[None]:
    """Somebody who streams all the time, and must not notice what this file does."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        expected, ended, answers = text_of(client), threading.Event(), []

        def ask() -> None:
            while not ended.is_set():
                answers.append(text_of(client))
                ended.wait(0.02)

        thread = threading.Thread(target=ask)
        thread.start()
        yield
        while len(answers) < 4 and thread.is_alive():
            time.sleep(0.02)
        ended.set()
        thread.join(60)
        assert not thread.is_alive()
        assert len(answers) > 3
        assert answers == [expected] * len(answers)


@pytest.fixture(autouse=True)
def alive(server: Live, client: httpx.Client) -> Iterator[None]:
    """After every test the server answers, nobody hangs in it, and the log has no failure."""
    yield
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
    deadline = time.monotonic() + 60  # the neighbour's last answer may not be counted out when his next one is counted
    while server.state.active > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.state.active <= 1


def refused(answer: httpx.Response, message: str = "") -> dict[str, Any]:
    """The error of a 4xx, which says something."""
    assert 400 <= answer.status_code < 500, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 15 and "Traceback" not in error["message"] and ".py" not in error["message"]
    assert message.lower() in error["message"].lower(), error["message"]
    assert len(error["message"]) < 3000
    return error


def post(client: httpx.Client, content: bytes | str, path: str = CHAT, **headers: str) -> httpx.Response:
    return client.post(path, content=content, headers={"content-type": "application/json", **headers})


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **fields}


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "JSON"),
    "truncated": (b'{"messages": [{"role": "user", "con', "JSON"),
    "truncated in a string": (b'{"messages": [{"role": "user", "content": "' + b"a" * 100_000, "JSON"),
    "a list": (b"[]", "object"),
    "a number": (b"17", "object"),
    "null": (b"null", "object"),
    "two objects": (b"{}{}", "JSON"),
    "invalid UTF-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe\x80"}]}', "JSON"),
    "UTF-16": ('{"messages": []}'.encode("utf-16"), "JSON"),
    "a lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "JSON"),
    "a null byte": (b'\0{"messages": []}', "JSON"),
    "deep lists": (b"[" * 100_000, "JSON"),
    "deep objects": (b'{"a":' * 50_000, "JSON"),
    "deep schema": (
        b'{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":'
        b'"a","schema":' + b'{"items":' * 5000 + b"{}" + b"}" * 5000 + b"}}}",
        "",
    ),
    "a huge number": (json.dumps(user("x"))[:-1].encode() + b', "seed": 1' + b"0" * 10_000 + b"}", "JSON"),
    "NaN": (json.dumps(user("x"))[:-1].encode() + b', "temperature": NaN}', "temperature"),
    "Infinity": (json.dumps(user("x"))[:-1].encode() + b', "temperature": -Infinity}', "temperature"),
    "a float too large": (json.dumps(user("x"))[:-1].encode() + b', "temperature": 1e999}', "temperature"),
    "not JSON": (b"messages=hello", "JSON"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_requests(client: httpx.Client, name: str) -> None:
    body, message = BODIES[name]
    refused(post(client, body), message)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "123456789"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "url": "x"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages[0]"),
        (user("x", temperature="hot"), "temperature"),
        (user("x", temperature=-0.1), "temperature"),
        (user("x", temperature=True), "temperature"),
        (user("x", repetition_penalty=3e-187), "repetition_penalty"),
        (user("x", top_p=2), "top_p"),
        (user("x", max_tokens=0), "max_tokens"),
        (user("x", max_tokens=10**18), "max_tokens"),
        (user("x", max_tokens=1.5), "max_tokens"),
        (user("x", n=0), "n"),
        (user("x", n=10**9), "n"),
        (user("x", stop=[""]), "stop"),
        (user("x", logit_bias={"-1": 1}), "logit_bias"),
        (user("x", logit_bias={"999999": 1}), "logit_bias"),
        (user("x", stop_token_ids=[10**9]), "stop_token_ids"),
        (user("x", seed="x"), "seed"),
        (user("x", stream="yes"), "stream"),
        (user("x", temprature=1), "temprature"),
        (user("x", model="another"), "model"),
        (user("x", __proto__={}), "__proto__"),
        (user([{"type": "image_url", "image_url": {"url": "x", "detail": "ultra"}}]), "messages[0].content"),
        (user([{"type": "image_url", "image_url": {"url": 7}}]), "messages[0].content"),
    ],
)
def test_fields_that_make_no_sense(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    error = refused(client.post(CHAT, json=fields))
    assert (error["param"] or error["message"]).startswith(param), error


@pytest.mark.parametrize("temperature", [5e-324, 2.2e-313, 1e-30, 1e-7, 1e-5])
def test_temperatures_next_to_nothing(client: httpx.Client, temperature: float) -> None:
    """They are nearly greedy; divided by the smallest of them, every logit would be infinite."""
    fields = {"temperature": temperature, "response_format": {"type": "json_object"}}
    assert client.post(CHAT, json=user("x", **fields)).status_code == 200


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images(client: httpx.Client, name: str) -> None:
    url, _ = HOSTILE[name]
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    error = refused(client.post(CHAT, json=user(parts)))
    if error["code"] != "body_too_large":
        assert error["param"] == "messages[0].content[1].image_url.url"


def test_a_thousand_images(client: httpx.Client) -> None:
    part = {"type": "image_url", "image_url": {"url": data_uri(encoded(8, 8))}}
    error = refused(client.post(CHAT, json=user([part] * 1000)), "found 1000 images")
    assert error["code"] == "too_many_images"


def test_ten_thousand_messages(client: httpx.Client) -> None:
    messages = [{"role": ("user", "assistant")[number % 2], "content": "x"} for number in range(9_999)]
    refused(client.post(CHAT, json={"messages": messages}), "messages")
    longer = [{**message, "content": "more words than fit"} for message in messages[:4001]]
    refused(client.post(CHAT, json={"messages": longer, "max_tokens": 2}), "context")


def test_a_long_text(server: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four million words would take a while to be read, so only their beginning is."""
    text, read = "word " * 4_000_000, []
    tokenizer = server.state.processor.tokenizer
    tokenize = tokenizer.ordinary_ids

    def noted(text: str) -> list[int]:
        read.append(len(text))
        return tokenize(text)

    monkeypatch.setattr(tokenizer, "ordinary_ids", noted)
    for path, fields in ((CHAT, user(text)), ("/v1/completions", {"prompt": text}), ("/tokenize", {"prompt": text})):
        error = refused(client.post(path, json=fields), "context")
        assert error["code"] == "context_length_exceeded"
    assert 1000 < max(read) <= 8 * server.state.max_model_len


MILLIONS = {
    "numbers": ("/v1/completions", b'{"prompt":[' + b"1," * 10_000_000 + b"1]}", "10,000,000 values"),
    "lists": ("/v1/completions", b'{"prompt":[' + b"[1]," * 5_000_000 + b"[1]]}", "5,000,000 values"),
    "fields": (CHAT, b"{" + b",".join(b'"%d":1' % number for number in range(300_000)) + b"}", "300,000 fields"),
    "wrong values": ("/v1/completions", b'{"prompt":[' + b"[1]," * 500_000 + b"[1]]}", "prompt"),
    "escaped quotes": (CHAT, b'{"messages":"' + b'\\",' * 4_000_000 + b'"}', "messages"),
}


@pytest.mark.parametrize("name", MILLIONS)
def test_millions_of_values(client: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error for each of them, of which there is one answer, would take a minute of everybody's time."""
    path, body, message = MILLIONS[name]
    counts = []

    def noted(error: Any, *rest: Any) -> Exception:
        counts.append(error.error_count())
        return validation_error(error, *rest)

    monkeypatch.setattr("pixtral.server.protocol.validation_error", noted)
    error = refused(post(client, body, path))
    assert re.search(message, error["message"]), error["message"]
    assert sum(counts) < 10


def test_a_text_full_of_commas(client: httpx.Client) -> None:
    """Commas and colons in a text are no values."""
    refused(client.post(CHAT, json=user("1,2:" * 2_000_000)), "the text has more than")


def test_a_body_of_100_megabytes(server: Live, client: httpx.Client) -> None:
    error = refused(post(client, b'{"messages": "' + bytes(100_000_000)), "found a body of 100,000,014 bytes")
    assert error["code"] == "body_too_large"

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1_000_000)

    with httpx.Client(base_url=server.url, timeout=60) as chunked:
        answer = chunked.post(CHAT, content=pieces(), headers={"content-type": "application/json"})
        refused(answer, "more than 24,000,000")
        assert answer.status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_type_of_body(client: httpx.Client, kind: str) -> None:
    """Web pages elsewhere can send these without asking; they must not be taken for JSON."""
    answer = client.post(CHAT, content=json.dumps(user("x")), headers={"content-type": kind})
    refused(answer, "application/json")
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/../../../../etc/passwd",
        "/page/x/..%2f..%2f..%2fsettings.py",
        "/page/x/%2e%2e%2fpage.py",
        "//etc/passwd",
        "/static/../app.py",
        "/page/x/....//....//app.py",
        "/page/x/%00",
        "/page/x/index.html%00.js",
        "/page/" + "a" * 20_000,
        "/v1/../../../etc/passwd",
        "/docs/../../etc/passwd",
        "/file:///etc/passwd",
        "/\\..\\..\\windows\\win.ini",
    ],
)
def test_paths_that_climb(server: Live, path: str) -> None:
    """As they are: clients of libraries would tidy them up first."""
    host, port = server.url.removeprefix("http://").split(":")
    answer = raw(host, int(port), f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500, answer[:300]
    assert b"root:" not in answer and b"import " not in answer


def raw(host: str, port: int, request: bytes) -> bytes:
    """What a server says to these bytes."""
    with socket.create_connection((host, port), timeout=60) as sock:
        sock.sendall(request)
        received = b""
        while data := sock.recv(1 << 16):
            received += data
        return received


def test_methods_and_places_that_are_not_there(client: httpx.Client) -> None:
    for path in ("/v1/nothing", "/v2/chat/completions", "/.env", "/admin"):
        assert refused(client.get(path), path)["code"] == "not_found"
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = client.request(method, CHAT)
        assert answer.status_code == 405
        refused(answer, method)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\1\2\3\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS on a plain port
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)
def test_what_is_hardly_http(server: Live, request_bytes: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        try:
            sock.sendall(request_bytes)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(1 << 16)
        except OSError:
            return  # cut off, which is an answer
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:200]


def test_clients_that_vanish(server: Live) -> None:
    """At once, in the middle of their body, before the first token, and in the middle of the stream."""
    body = json.dumps({**STREAMED, "max_tokens": 2000}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    for sent, wait in (
        (head.encode()[:20], 0),
        (head.encode() + body[:50], 0),
        (head.encode() + body, 0),
        (head.encode() + body, 0.01),
        (head.encode() + body, 0.3),
    ):
        for _ in range(4):
            sock = socket.create_connection((host, int(port)), timeout=60)
            sock.sendall(sent)
            time.sleep(wait)
            # no farewell: a reset, as when a machine is switched off
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    deadline = time.monotonic() + 60
    while server.state.active > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.state.active <= 1
    while server.state.engine.stats().num_running > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.state.engine.stats().num_running <= 1


def test_many_slow_connections_do_not_keep_others_out(server: Live, client: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    slow = []
    try:
        for number in range(100):
            sock = socket.create_connection((host, int(port)), timeout=60)
            sock.sendall(
                (b"GET / HT", f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n".encode())[number % 2]
            )
            slow.append(sock)
        assert client.post(CHAT, json=user("x")).status_code == 200
    finally:
        for sock in slow:
            sock.close()


def test_wrong_keys(tiny: Any) -> None:
    with serving(tiny, api_key="correct-horse") as live, httpx.Client(base_url=live.url, timeout=60) as client:
        for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/tokenize", "POST"), ("/v1/responses", "POST")):
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic correct-horse"}):
                answer = client.request(method, path, json=user("x"), headers=header)
                assert answer.status_code == 401
                assert refused(answer, "Authorization: Bearer")["code"] == "invalid_api_key"
        right = {"authorization": "Bearer correct-horse"}
        assert client.post(CHAT, json=user("x"), headers=right).status_code == 200
        for path in ("/health", "/ready", "/metrics", "/"):
            assert client.get(path).status_code == 200


def test_another_name_and_another_page(client: httpx.Client) -> None:
    assert refused(client.get("/v1/models", headers={"host": "rebound.example"}))["code"] == "host_not_allowed"
    answer = client.post(CHAT, json=user("x"), headers={"origin": "https://evil.example"})
    assert refused(answer)["code"] == "origin_not_allowed"


def test_unknown_paths_do_not_fill_the_metrics(client: httpx.Client) -> None:
    for number in range(20):
        client.get(f"/nothing/{number}")
    assert "/nothing/7" not in client.get("/metrics").text
