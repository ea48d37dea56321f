"""Which network addresses everyone may reach, and names looked up once and within a time limit."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from typing import TypeAlias

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
Place: TypeAlias = (
    "tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]"
)

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is given out; outside lie local and reserved ranges
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_ISATAP = (0x00005EFE, 0x02005EFE)  # third quarter of an address whose last quarter is an IPv4 address
# Public by number, but answered by the host of a virtual machine or by the network itself: 168.63.129.16 is Azure's,
# 192.0.0.192 Oracle's. Older versions of `ipaddress` do not know the second range as a whole.
_LOCAL = (ipaddress.IPv4Network("168.63.129.16/32"), ipaddress.IPv4Network("192.0.0.0/24"))


def is_public(text: str) -> bool:
    """Whether an address is one that everyone may reach; every IPv4 address inside an IPv6 one must be, too.

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


def resolve(host: str, port: int, timeout: float) -> list[Place]:
    """Where a name leads, as `socket.getaddrinfo` says it.

    The system's resolver knows no time limit, so it is asked by a thread that is left behind when it is too slow.

    Raises:
        TimeoutError: no answer within `timeout` seconds.
        OSError, UnicodeError: the name has no address, or is no name.
    """
    answers: queue.SimpleQueue[list[Place] | OSError | UnicodeError] = queue.SimpleQueue()

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
