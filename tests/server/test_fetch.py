"""Addresses of images as clients send them: data: always, http(s) only where allowed and public, nothing else."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from pixtral.errors import ImageError, ImageFetchError, ImageTooLarge
from pixtral.images.limits import ImageLimits
from pixtral.server.images import MEDIA_TYPES, Fetcher

_BUFFER = io.BytesIO()
Image.new("RGB", (20, 30), "red").save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()
CLOSED = ImageLimits(allow_remote=False, allow_private=False, allow_files=False, media_types=MEDIA_TYPES)
OPEN = ImageLimits(allow_private=False, allow_files=False, media_types=MEDIA_TYPES, timeout=60, max_bytes=100_000)
LOOPBACK = ImageLimits(allow_files=False, media_types=MEDIA_TYPES, timeout=60, max_bytes=100_000)


def read(url: str, limits: ImageLimits) -> bytes:
    async def once() -> bytes:
        fetcher = Fetcher(limits)
        try:
            return await fetcher.read(url)
        finally:
            fetcher.close()

    return asyncio.run(once())


class Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, str]]
    released = threading.Event()  # what ends the wait of slow answers

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        status, headers, body = {
            "/a.png": (200, {"Content-Type": "image/png"}, PNG),
            "/a.pdf": (200, {"Content-Type": "application/pdf"}, b"%PDF-1.4"),
            "/page": (200, {"Content-Type": "text/html"}, b"<html>secret</html>"),
            "/inside": (302, {"Location": "http://127.0.0.1:1/a.png"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd"}, b""),
            "/data": (302, {"Location": "data:image/png;base64,AAAA"}, b""),
            "/large": (200, {"Content-Type": "image/png"}, bytes(200_000)),
            "/slow": (200, {"Content-Type": "image/png"}, PNG),
        }.get(self.path, (404, {}, b""))
        if self.path == "/slow":
            self.released.wait(60)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    Handler.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running.server_address[1]
        Handler.released.set()
        running.shutdown()


@pytest.fixture
def public(server: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """example.com is a public address by name, and this machine by connection; counts the lookups."""
    port, connect = server, socket.socket.connect

    def lookup(host: str, *args: object, **kwargs: object) -> list[object]:
        lookups.append(host)
        found = {
            "example.com": "93.184.216.34",
            "rebound.example": "93.184.216.34" if len(lookups) == 1 else "10.0.0.1",
        }
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found.get(host, host), port))]

    def to_loopback(sock: socket.socket, address: tuple[str, int]) -> None:
        connected.append(address[0])
        connect(sock, ("127.0.0.1", port))

    monkeypatch.setattr("socket.getaddrinfo", lookup)
    monkeypatch.setattr(socket.socket, "connect", to_loopback)
    lookups.clear()
    connected.clear()
    return port


lookups: list[str] = []
connected: list[str] = []


def test_data_is_read_whatever_else_is_allowed() -> None:
    encoded = base64.b64encode(PNG).decode()
    for head in ("data:image/png;base64,", "DATA:image/PNG;charset=x;base64, ", " data:;base64,"):
        assert read(head + encoded, CLOSED) == PNG


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("file:///etc/passwd", ImageFetchError, "the scheme file:; expected a data: URI"),
        ("FILE:/etc/passwd", ImageFetchError, "the scheme file:"),
        (" file:///etc/passwd", ImageFetchError, "the scheme file:"),
        ("/etc/passwd", ImageFetchError, "no scheme.*files of the server are never opened"),
        ("../../etc/passwd", ImageFetchError, "no scheme"),
        ("C:\\Windows\\win.ini", ImageFetchError, "the scheme c:"),
        ("ftp://example.com/a.png", ImageFetchError, "the scheme ftp:"),
        ("gopher://127.0.0.1:6379/_INFO", ImageFetchError, "the scheme gopher:"),
        ("jar:http://example.com/a", ImageFetchError, "the scheme jar:"),
        ("", ImageFetchError, "no scheme"),
        ("http:/example.com", ImageFetchError, "the scheme http:"),
        ("http://example.com/a.png", ImageFetchError, "does not fetch images.*--allow-remote-images"),
        ("data:text/html;base64,AAAA", ImageFetchError, "of type 'text/html'; expected an image"),
        ("data:image/png;base64,A*A", ImageError, "not valid base64"),
        ("data:image/png;base64", ImageError, "expected data:image"),
        (base64.b64encode(PNG).decode(), ImageFetchError, "no scheme"),
    ],
)
def test_everything_else_is_refused(url: str, kind: type[ImageError], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read(url, CLOSED)
    assert type(caught.value) is kind
    assert "ImageLimits" not in str(caught.value)


def test_data_has_a_limit() -> None:
    with pytest.raises(ImageTooLarge, match=r"expected at most 100,000; compress or scale the image$"):
        read("data:image/png;base64," + "A" * 200_000, OPEN)


def test_a_public_address_is_fetched_with_its_name(public: int) -> None:
    assert read("http://example.com/a.png", OPEN) == PNG
    assert Handler.seen[-1] == ("/a.png", "example.com")
    assert lookups == ["example.com"]  # one lookup; what it gave is what was connected to
    assert connected == ["93.184.216.34"]
    assert read("http://example.com/a.pdf", OPEN).startswith(b"%PDF")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "10.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fd00:ec2::254]",
        "[::127.0.0.1]",
        "[fe80::1]",
        "0.0.0.0",
    ],
)
def test_addresses_that_are_not_public(host: str, server: int) -> None:
    """With the system's own resolver, which also knows the short forms of IPv4."""
    before = len(Handler.seen)
    with pytest.raises(
        ImageFetchError, match=r"leads to an address that is not public; such URLs are not fetched here$"
    ):
        read(f"http://{host}:{server}/a.png", OPEN)
    assert len(Handler.seen) == before


def test_a_redirect_is_checked_again(public: int) -> None:
    with pytest.raises(ImageFetchError, match="leads to an address that is not public"):
        read("http://example.com/inside", OPEN)
    assert connected == ["93.184.216.34"]
    for path in ("/file", "/data"):
        with pytest.raises(ImageFetchError, match="expected a URL that begins with http"):
            read(f"http://example.com{path}", OPEN)


def test_a_name_that_changes_its_address_gains_nothing(public: int) -> None:
    """DNS rebinding: the first lookup is public, a second one would lead inside; there is none."""
    assert read("http://rebound.example/a.png", OPEN) == PNG
    assert lookups == ["rebound.example"]


def test_limits_of_a_download(server: int) -> None:
    start = f"http://127.0.0.1:{server}"
    with pytest.raises(ImageFetchError, match="answered with 'text/html'; expected image/"):
        read(f"{start}/page", LOOPBACK)
    with pytest.raises(ImageTooLarge, match="more than 100,000"):
        read(f"{start}/large", LOOPBACK)
    with pytest.raises(ImageFetchError, match=r"not received within 1 seconds; try again$"):
        read(f"{start}/slow", dataclasses.replace(LOOPBACK, timeout=1))


def test_slow_downloads_hold_up_nobody(server: int) -> None:
    """The event loop goes on, and data: is read, while there are more slow downloads than threads."""

    async def both() -> None:
        fetcher = Fetcher(LOOPBACK, downloads=2)
        slow = [asyncio.ensure_future(fetcher.read(f"http://127.0.0.1:{server}/slow")) for _ in range(3)]
        await fetcher.read("data:image/png;base64,AAAA")
        assert not any(download.done() for download in slow)
        Handler.released.set()
        assert await asyncio.gather(*slow) == [PNG] * 3
        fetcher.close()

    Handler.released.clear()
    asyncio.run(both())


def test_proxies_of_the_environment_are_not_used(public: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would look the name up again."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://10.0.0.1:1")
    assert read("http://example.com/a.png", OPEN) == PNG
    assert connected == ["93.184.216.34"]
