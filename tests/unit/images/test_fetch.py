"""Fetching images: limits, redirects, wrong answers, and which addresses are public."""

from __future__ import annotations

import io
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixtral.errors import ImageError, ImageFetchError, ImageTooLarge
from pixtral.images.fetch import fetch, is_public, resolve
from pixtral.images.limits import ImageLimits
from pixtral.images.source import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
_BUFFER = io.BytesIO()
Image.fromarray(PIXELS).save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()
LIMITS = ImageLimits(timeout=60.0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str]]]
    sent = 0  # bytes of the endless answer
    released = threading.Event()  # at the end of the tests, those who still wait

    def do_GET(self) -> None:
        type(self).seen.append((self.path, dict(self.headers)))
        route = self.path.split("?")[0].strip("/").split("/")[0] or "image"
        try:
            getattr(self, f"send_{route}")()
        except OSError:
            self.close_connection = True  # the client has had enough

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_image(self) -> None:
        self.reply(200, PNG, Content_Type="image/png")

    def send_until_closed(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(PNG)
        self.close_connection = True

    def send_chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(PNG), 100):
            part = PNG[at : at + 100]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def send_missing(self) -> None:
        self.reply(404, b"nothing here")

    def send_text(self) -> None:
        self.reply(200, b"<html>log in first</html>")

    def send_page(self) -> None:
        self.reply(200, b"<html></html>", Content_Type="Text/HTML; charset=utf-8")

    def send_empty(self) -> None:
        self.reply(200)

    def send_hops(self) -> None:
        left = int(self.path.rsplit("/", 1)[1])
        self.reply(302, Location=f"/hops/{left - 1}" if left else "/image")

    def send_circle(self) -> None:
        self.reply(307, Location="/circle")

    def send_elsewhere(self) -> None:
        self.reply(301, Location="file:///etc/passwd")

    def send_announced(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()
        self.wfile.write(PNG)

    def send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while True:  # until the client has had enough; it may not read all that it is sent
            self.wfile.write(bytes(1 << 16))
            type(self).sent += 1 << 16

    def send_short(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PNG)))
        self.end_headers()
        self.wfile.write(PNG[:-50])
        self.close_connection = True

    def send_silence(self) -> None:
        self.released.wait(60)

    def send_drops(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not self.released.wait(0.05):
            self.wfile.write(b"x")
            self.wfile.flush()

    def send_headers_slowly(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.released.wait(0.05):
            self.wfile.write(b"X-Wait: 1\r\n")

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Handler.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        Handler.released.clear()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        Handler.released.set()
        running.shutdown()


@pytest.mark.parametrize("route", ["/", "/image", "/until_closed", "/chunked", "/hops/2", "/image?size=large&x=1"])
def test_good_answers(server: str, route: str) -> None:
    assert fetch(server + route, LIMITS) == PNG
    np.testing.assert_array_equal(np.asarray(load_image(server + route, limits=LIMITS)), PIXELS)


def test_the_request(server: str) -> None:
    fetch(f"{server}/image/a b/ü?q=ä b#part", LIMITS)
    path, headers = Handler.seen[-1]
    assert path == "/image/a%20b/%C3%BC?q=%C3%A4%20b"
    assert headers["User-Agent"].startswith("pixtral")
    assert headers["Host"] == server.removeprefix("http://")


@pytest.mark.parametrize(
    ("route", "kind", "message"),
    [
        ("/missing", ImageFetchError, "answered 404 Not Found; expected 200"),
        ("/text", ImageError, "begin with b'<html>log in'"),
        ("/empty", ImageError, "found 0 bytes"),
        ("/circle", ImageFetchError, "redirects more than 3 times.*max_redirects"),
        ("/hops/4", ImageFetchError, "redirects more than 3 times"),
        ("/elsewhere", ImageFetchError, "'file:///etc/passwd'; expected a URL that begins with http"),
        ("/short", ImageFetchError, r"sent \d+ of \d+|sent [\d,]+ of [\d,]+ bytes"),
    ],
)
def test_bad_answers(server: str, route: str, kind: type[ImageError], message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(server + route, limits=LIMITS)
    assert type(caught.value) is kind


@pytest.mark.parametrize("route", ["/announced", "/endless"])
def test_a_huge_answer_is_not_read(server: str, route: str) -> None:
    before = Handler.sent
    with pytest.raises(ImageTooLarge, match=r"more than 1,000,000|1,073,741,824"):
        fetch(server + route, ImageLimits(max_bytes=1_000_000, timeout=60))
    assert Handler.sent - before < 100_000_000  # what was read, and what lies in the buffers between


@pytest.mark.parametrize("route", ["/silence", "/drops", "/headers_slowly"])
def test_the_whole_exchange_has_one_time_limit(server: str, route: str) -> None:
    with pytest.raises(ImageFetchError, match=r"not received within 0\.4 seconds.*timeout"):
        fetch(server + route, ImageLimits(timeout=0.4))  # the answer would go on for as long as these tests


def test_errors_are_oserrors_too(server: str) -> None:
    with pytest.raises(OSError, match="404"):
        fetch(f"{server}/missing", LIMITS)


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ImageFetchError, match=r"could not be fetched \(.*refused"):
            fetch(f"http://127.0.0.1:{bound.getsockname()[1]}/a.png", LIMITS)


def test_a_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(ImageFetchError, match="Name or service not known"):
        fetch("http://nowhere.invalid/a.png", LIMITS)


def test_remote_can_be_forbidden(server: str) -> None:
    with pytest.raises(ImageFetchError, match="allow_remote is False"):
        fetch(server, ImageLimits(allow_remote=False))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.9",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "2002:a00:1::",
        "64:ff9b::a00:1",
        "224.0.0.1",
        "0.0.0.0",
    ],
)
def test_private_addresses_can_be_forbidden(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By address, so that a public name which leads inside is caught as well, and before a connection is made."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def lookup(*args: object, **kwargs: object) -> list[object]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr("socket.getaddrinfo", lookup)
    with pytest.raises(ImageFetchError, match=r"is not a public address.*allow_private"):
        fetch("http://inside.example.com/a.png", ImageLimits(allow_private=False))


def test_every_address_of_a_name_is_checked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One public address in front of a private one does not make the name public."""
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: places)
    with pytest.raises(ImageFetchError, match=r"leads to 10\.0\.0\.1, which is not a public address"):
        fetch("http://two.example.com/a.png", ImageLimits(allow_private=False))


def test_a_lookup_counts_in_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: answered.wait(60))
    with pytest.raises(ImageFetchError, match=r"not received within 0\.3 seconds"):
        fetch("http://slow.example.com/a.png", ImageLimits(timeout=0.3))
    assert not answered.is_set()
    answered.set()


def test_the_declared_type(server: str) -> None:
    limits = ImageLimits(timeout=60.0, media_types=("image/",))
    assert fetch(f"{server}/image", limits) == PNG  # image/png
    assert fetch(f"{server}/chunked", limits) == PNG  # none
    with pytest.raises(ImageFetchError, match="answered with 'text/html'; expected image/"):
        fetch(f"{server}/page", limits)


def test_a_server_that_speaks_nonsense() -> None:
    def nonsense(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"hello\r\n\r\n")

    _against(nonsense, "could not be fetched")


def test_a_server_that_hangs_up() -> None:
    def hang_up(listener: socket.socket) -> None:
        listener.accept()[0].close()

    _against(hang_up, "could not be fetched")


def test_https_to_a_server_without_it() -> None:
    def plain(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    _against(plain, "could not be fetched", scheme="https")


def _against(behaviour: Callable[[socket.socket], None], message: str, scheme: str = "http") -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=behaviour, args=[listener], daemon=True)
        thread.start()
        with pytest.raises(ImageFetchError, match=message):
            fetch(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/a.png", LIMITS)
        thread.join(5)


PUBLIC = ("8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::6810:84e5", "2a00:1450:4001:81b::200e")
INSIDE = (
    "127.0.0.1",
    "127.8.8.8",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.0.9",
    "100.64.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "203.0.113.5",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
)
INSIDE_6 = (
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "64:ff9b:1::808:808",
    "100::1",
    "4000::1",
    "5f00::1",
)


def carriers(address: str) -> list[str]:
    """An IPv4 address inside IPv6 ones: mapped, compatible, 6to4, NAT64 and ISATAP."""
    number = int(ipaddress.IPv4Address(address))
    forms = (
        (0xFFFF << 32) | number,
        number,
        (0x2002 << 112) | (number << 80) | 1,
        (0x0064FF9B << 96) | number,
        (0x2A001450 << 96) | (0x00005EFE << 32) | number,
        (0x2A001450 << 96) | (0x02005EFE << 32) | number,
    )
    return [str(ipaddress.IPv6Address(form)) for form in forms]


@pytest.mark.parametrize("address", [*INSIDE, *INSIDE_6])
def test_what_not_everyone_can_reach_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", INSIDE)
def test_ipv6_does_not_hide_an_address(address: str) -> None:
    assert [form for form in carriers(address) if is_public(form)] == []


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)
    if ":" not in address:
        assert all(is_public(form) for form in carriers(address))


@given(st.ip_addresses(v=6))
def test_nothing_beyond_what_is_given_out(address: ipaddress.IPv6Address) -> None:
    if is_public(str(address)) and address.ipv4_mapped is None and int(address) >> 96 not in (0, 0x0064FF9B):
        assert address in ipaddress.IPv6Network("2000::/3")


def test_a_lookup_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: answered.wait(60))
    with pytest.raises(TimeoutError, match=r"slow\.example was not resolved in time"):
        resolve("slow.example", 80, 0.2)
    answered.set()


def test_a_lookup_fails_as_the_system_says() -> None:
    with pytest.raises(UnicodeError):
        resolve("a" * 70 + ".example", 80, 5)
    assert resolve("127.0.0.1", 80, 5)[0][0] == socket.AF_INET
