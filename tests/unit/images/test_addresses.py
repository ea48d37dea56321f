"""Which addresses count as public: every special range, and IPv4 addresses in all the ways IPv6 can carry them."""

from __future__ import annotations

import ipaddress
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral.images.fetch import is_public, resolve

PUBLIC = ("8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::6810:84e5", "2a00:1450:4001:81b::200e")
INSIDE = (
    "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.0.9", "100.64.0.1", "0.0.0.0", "0.1.2.3",
    "169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.5",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
)  # fmt: skip
INSIDE_6 = (
    "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b:1::808:808", "100::1", "4000::1", "5f00::1",
)  # fmt: skip


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
