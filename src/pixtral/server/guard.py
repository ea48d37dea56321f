"""ASGI middleware before the application: API keys, host names and origins, and limits on bodies in size and time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pixtral.server.errors import ApiError
from pixtral.server.settings import Settings, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_DISCARDED_SECONDS = 5.0  # how long the rest of a refused body is read (see `_refuse`)


@dataclasses.dataclass(frozen=True, slots=True)
class GuardLimits:
    """Limits of `Guard`.

    Attributes:
        max_body: bytes of one request's body.
        max_bodies: bytes of all bodies whose requests have not been answered yet.
        body_patience: seconds that a body may take, however short it is; a long one gets more time as it comes in.
        body_rate: bytes a second that a sender must reach beyond that.
        api_keys: one of them must come as `Authorization: Bearer KEY`; without any, no key is required.
        open_paths: need no key, such as "/health".
        hosts: names in the Host header that are answered when there is no key; None means all. It keeps out web pages
            whose name was pointed to this machine (DNS rebinding).
        origins: of web pages elsewhere that may send requests when there is no key; "*" means all.
    """

    max_body: int = 67_108_864
    max_bodies: int = 536_870_912
    body_patience: float = 15.0
    body_rate: float = 65_536.0
    api_keys: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset()
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()


def guard_limits(settings: Settings, open_paths: Iterable[str] = ()) -> GuardLimits:
    """The limits of a server with these settings; `open_paths` in addition to health and metrics."""
    alone = settings.api_key is None and is_loopback(settings.host)
    return GuardLimits(
        max_body=settings.max_body_bytes,
        max_bodies=max(8 * settings.max_body_bytes, 1 << 28),
        api_keys=() if settings.api_key is None else (settings.api_key,),
        open_paths=frozenset({"/health", "/ready", "/metrics", *open_paths}),
        hosts=(*_OWN_NAMES, *settings.allowed_host) if alone and "*" not in settings.allowed_host else None,
        origins=settings.cors_origin,
    )


class Guard:
    """ASGI middleware that refuses requests before the application sees them, and passes on complete bodies."""

    def __init__(self, app: ASGIApp, limits: GuardLimits) -> None:
        self._app, self._limits = app, limits
        self._keys = [key.encode() for key in limits.api_keys]
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # web sockets are not served
            await send({"type": "websocket.close", "code": 1008})
            return
        held = [0]
        try:
            self._check_sender(scope)
            body = await self._body(scope, receive, held)
        except _Disconnected:
            self._held -= held[0]
            return
        except ApiError as error:
            self._held -= held[0]
            await _refuse(error, receive, send)
            return
        await self._answer(scope, body, held, receive, send)

    async def _answer(self, scope: Scope, body: bytes | None, held: list[int], receive: Receive, send: Send) -> None:
        """Call the application; the body counts as held until the response begins."""
        waiting = [body]

        async def receive_body() -> Message:
            body = waiting.pop() if waiting else None
            return await receive() if body is None else {"type": "http.request", "body": body, "more_body": False}

        async def send_and_release(message: Message) -> None:
            self._held -= held[0]
            held[0] = 0
            await send(message)

        try:
            await self._app(scope, receive_body, send_and_release)
        finally:
            self._held -= held[0]

    def _check_sender(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._keys:
            if scope["path"] not in self._limits.open_paths:
                self._check_key(headers.get(b"authorization", b""))
            return
        host = headers.get(b"host", b"").decode("latin-1")
        if self._limits.hosts is not None and host_name(host) not in self._limits.hosts:
            raise ApiError(
                403,
                f"found the host name {host_name(host)[:80]!r}; expected {' or '.join(self._limits.hosts)}; "
                "a server without a key answers to names that it was given only",
                code="host_not_allowed",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and scope["method"] not in _SAFE_METHODS and not self._is_allowed(origin, host):
            raise ApiError(
                403,
                f"found a request from a web page of {origin[:80]!r}; expected one of this server; a server without a "
                "key takes requests of other pages only from origins that it was given",
                code="origin_not_allowed",
            )

    def _is_allowed(self, origin: str, host: str) -> bool:
        return "*" in self._limits.origins or origin in self._limits.origins or urlsplit(origin).netloc == host

    def _check_key(self, header: bytes) -> None:
        kind, _, key = header.partition(b" ")
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]  # all of them: equal time
        if kind.lower() != b"bearer" or not any(matches):
            found = "another key" if key else "no key"
            raise ApiError(
                401,
                f"found {found}; expected the header 'Authorization: Bearer KEY' with the key of this server",
                type="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive, held: list[int]) -> bytes | None:
        """The whole body, or None where the request has none."""
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length")
        if announced is None and b"transfer-encoding" not in headers:
            return None
        if announced is not None and announced.isdigit() and int(announced) > self._limits.max_body:
            raise self._too_large(f"{int(announced):,}")
        parts: list[bytes] = []
        size, more, clock = 0, True, asyncio.get_running_loop().time
        start = clock()
        while more:
            allowed = self._limits.body_patience + size / self._limits.body_rate
            message = await self._within(receive, start + allowed - clock(), size)
            if message["type"] == "http.disconnect":
                raise _Disconnected
            part = message.get("body", b"")
            size += len(part)
            held[0] += len(part)
            self._held += len(part)
            more = message.get("more_body", False)
            if size > self._limits.max_body:
                raise self._too_large(f"more than {self._limits.max_body:,}")
            if self._held > self._limits.max_bodies:
                raise ApiError(
                    503,
                    "the server holds as many request bodies as it can; try again in a moment",
                    type="server_error",
                    code="overloaded",
                    headers={"retry-after": "2"},
                )
            parts.append(part)
        return b"".join(parts)

    async def _within(self, receive: Receive, seconds: float, size: int) -> Message:
        try:
            return await asyncio.wait_for(receive(), max(seconds, 0.001))
        except asyncio.TimeoutError:
            raise ApiError(
                408,
                f"found {size:,} bytes of a body whose rest did not come in time; expected at least "
                f"{self._limits.body_rate:,.0f} bytes a second; send it again",
                code="body_too_slow",
            ) from None

    def _too_large(self, found: str) -> ApiError:
        return ApiError(
            413,
            f"found a body of {found} bytes; expected at most {self._limits.max_body:,}; send fewer or smaller images",
            code="body_too_large",
        )


class _Disconnected(Exception):
    """The client disconnected before its body was complete."""


def host_name(host: str) -> str:
    """The name in a Host header, without the port.

    >>> host_name("LocalHost:8000"), host_name("[::1]:8000")
    ('localhost', '::1')
    """
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


async def _refuse(error: ApiError, receive: Receive, send: Send) -> None:
    """Send the error, then read the rest of the body for a while: senders that are cut off would not read it."""
    body = error.encoded()
    headers: Iterable[tuple[str, str]] = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }.items()
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if error.status != 408:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_discard(receive), _DISCARDED_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass
