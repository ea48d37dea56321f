"""Download an image over http or https, with limits on time, size, redirects and network addresses.

An address is checked after the name is resolved and before it is connected to, so that a URL cannot lead to a private
network by its name or by a redirect (server-side request forgery).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from typing import TypeAlias
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pixtral.errors import ImageError, ImageFetchError
from pixtral.images.decode import too_many_bytes
from pixtral.images.limits import ImageLimits, shortened

_AddressInfo: TypeAlias = (
    "tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]"
)

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all allocated addresses; the rest is local or reserved
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_ISATAP = (0x00005EFE, 0x02005EFE)  # third quarter of an address whose last quarter is an IPv4 address
# Public by number, but answered by the host of a virtual machine or by the network itself: 168.63.129.16 is Azure's,
# 192.0.0.192 Oracle's. Older versions of `ipaddress` do not know the second range as a whole.
_LOCAL = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))

_HEADERS = {"User-Agent": "pixtral-python/1.0", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
# Media types of storage services that do not know a file's type; with any other type the answer is a page.
_UNTYPED = ("application/octet-stream", "binary/octet-stream", "application/binary")


def fetch(url: str, limits: ImageLimits) -> bytes:
    """Download an http(s) URL.

    Raises:
        ImageFetchError: refused by `limits`, unreachable, too slow, redirected too often, or an answer that is not 200.
        ImageTooLarge: the body is longer than `limits.max_bytes`; no more than that is read.
    """
    if not limits.allow_remote:
        raise ImageFetchError(f"found {shortened(url)}; URLs are not fetched here (ImageLimits.allow_remote is False)")
    deadline = time.monotonic() + limits.timeout
    current = url
    for _ in range(limits.max_redirects + 1):
        answer = _Request(current, limits, deadline).run()
        if isinstance(answer, bytes):
            return answer
        current = answer
    raise ImageFetchError(
        f"{shortened(url)} redirects more than {limits.max_redirects} times; "
        "pass the final address or raise ImageLimits.max_redirects"
    )


class _Request:
    """One request: `run` gives the body, or the address that a redirect points to."""

    def __init__(self, url: str, limits: ImageLimits, deadline: float) -> None:
        self.url, self.limits, self.deadline = url, limits, deadline
        self.parts = _split(url)
        self.timed_out = False

    def run(self) -> bytes | str:
        try:
            connection = self._connect()
            try:
                return self._exchange(connection)
            finally:
                connection.close()
        except ImageError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self.timed_out or isinstance(error, TimeoutError):
                raise self._too_slow() from error
            reason = str(error) or type(error).__name__
            raise ImageFetchError(
                f"{shortened(self.url)} could not be fetched ({reason}); check the address"
            ) from error

    def _exchange(self, connection: http.client.HTTPConnection) -> bytes | str:
        # A socket's timeout restarts with every byte, so a timer ends the whole exchange.
        alarm = threading.Timer(max(self._time_left(), 0.001), self._give_up, [connection.sock])
        alarm.daemon = True
        alarm.start()
        try:
            target = quote(self.parts.path or "/", safe="/%:@!$&'()*+,;=~")
            query = quote(self.parts.query, safe="/%:@!$&'()*+,;=~?")
            connection.request("GET", f"{target}?{query}" if query else target, headers=_HEADERS)
            with contextlib.closing(connection.getresponse()) as response:  # it references the socket, too
                answer = self._answer(response)
        finally:
            alarm.cancel()
        if self.timed_out:
            raise self._too_slow()
        return answer

    def _answer(self, response: http.client.HTTPResponse) -> bytes | str:
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            return urljoin(self.url, location)
        if response.status != 200:
            raise ImageFetchError(
                f"{shortened(self.url)} answered {response.status} {response.reason}; expected 200 and an image"
            )
        self._check_type(response.getheader("Content-Type"))
        return self._body(response)

    def _check_type(self, header: str | None) -> None:
        media_type = (header or "").partition(";")[0].strip().lower()
        kinds = self.limits.media_types
        if kinds is not None and media_type and media_type not in _UNTYPED and not media_type.startswith(kinds):
            raise ImageFetchError(
                f"{shortened(self.url)} answered with {shortened(media_type)}; expected {' or '.join(kinds)}"
            )

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        announced = response.length
        if announced is not None and announced > self.limits.max_bytes:
            raise too_many_bytes(f"an answer of {announced:,}", self.limits)
        body = bytearray()
        while part := response.read1(_CHUNK):
            body += part
            if len(body) > self.limits.max_bytes:
                raise too_many_bytes(f"an answer of more than {self.limits.max_bytes:,}", self.limits)
        if announced is not None and len(body) < announced and not self.timed_out:
            raise ImageFetchError(
                f"{shortened(self.url)} sent {len(body):,} of {announced:,} bytes and then closed; try again"
            )
        return bytes(body)

    def _connect(self) -> http.client.HTTPConnection:
        """A connection over a socket to a checked address; http.client would resolve the name again (DNS rebinding)."""
        host, secure = self.parts.hostname or "", self.parts.scheme == "https"
        port = self.parts.port or (443 if secure else 80)
        connection = http.client.HTTPConnection(host, port)
        raw = self._open_socket(host, port)
        try:
            raw.settimeout(max(self._time_left(), 0.001))
            connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        except BaseException:
            raw.close()
            raise
        if secure:
            connection.default_port = 443  # so that the Host header leaves it out
        return connection

    def _open_socket(self, host: str, port: int) -> socket.socket:
        """One lookup; every address that it gave is checked before the first is connected to."""
        infos = resolve(host, port, self._time_left())
        for info in infos:
            if not self.limits.allow_private and not is_public(str(info[4][0])):
                raise ImageFetchError(
                    f"{shortened(self.url)} leads to {info[4][0]}, which is not a public address; "
                    "such URLs are not fetched here (ImageLimits.allow_private is False)"
                )
        failure: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in infos:
            candidate = socket.socket(family, kind, protocol)
            try:
                candidate.settimeout(max(self._time_left(), 0.001))
                candidate.connect(address)
            except OSError as error:
                candidate.close()
                failure = error
                continue
            return candidate
        raise failure

    def _time_left(self) -> float:
        return self.deadline - time.monotonic()

    def _give_up(self, sock: socket.socket) -> None:
        self.timed_out = True
        try:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # ends the read that blocks
        except OSError:
            return  # closed already

    def _too_slow(self) -> ImageFetchError:
        return ImageFetchError(
            f"{shortened(self.url)} was not received within {self.limits.timeout:g} seconds; "
            "try again or raise ImageLimits.timeout"
        )


def _split(url: str) -> SplitResult:
    """The parts of an http(s) URL; everything else is refused, also as the target of a redirect."""
    try:
        parts = urlsplit(url.strip())
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ImageFetchError(f"found {shortened(url)}, which is not a valid URL ({error})") from error
    if parts.scheme not in ("http", "https") or not valid:
        raise ImageFetchError(f"found {shortened(url)}; expected a URL that begins with http:// or https://")
    if parts.username is not None:
        raise ImageFetchError(
            f"found a URL with a user name for {parts.hostname}; expected one without; fetch it, pass the bytes"
        )
    return parts


def is_public(text: str) -> bool:
    """Whether an IP address is public; an IPv4 address embedded in an IPv6 one must be public, too.

    >>> [is_public(text) for text in ("93.184.216.34", "10.0.0.1", "::ffff:127.0.0.1", "2002:7f00:1::")]
    [True, False, False, False]
    """
    address = ipaddress.ip_address(text.split("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in net for net in _LOCAL)
    if address.ipv4_mapped or address in _IPV4_COMPATIBLE or address in _NAT64[0]:
        return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    if address in _NAT64[1] or address.teredo or address not in _GLOBAL_UNICAST:
        return False
    if address.sixtofour:
        return is_public(str(address.sixtofour))
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    return address.is_global and not address.is_multicast


def resolve(host: str, port: int, timeout: float) -> list[_AddressInfo]:
    """The addresses of a host name, from `socket.getaddrinfo`.

    The system's resolver has no time limit, so it runs in a thread that is abandoned when it is too slow.

    Raises:
        TimeoutError: no answer within `timeout` seconds.
        OSError, UnicodeError: the name has no address, or is not valid.
    """
    answers: queue.SimpleQueue[list[_AddressInfo] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="pixtral-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(timeout, 0.001))
    except queue.Empty:
        raise TimeoutError(f"the name {host} was not resolved in time") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer
