"""Available memory, sizes in bytes, and the refusal of a model that does not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from pixtral.errors import CheckpointError, ConfigError

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_PAGE_CACHE = ("inactive_file", "active_file")  # reclaimable


def available_memory(device: torch.device) -> int | None:
    """Bytes that a new model could take on a device; None if unknown.

    On the CPU: MemAvailable plus free swap, and no more than the container's limit leaves.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return _physical_memory()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.count(":") == 1}
    free = (kib["MemAvailable"] + kib.get("SwapFree", 0)) * 1024
    room = _container_room()
    return free if room is None else min(free, room)


@dataclass(frozen=True)
class Alternative:
    """One way to load a model that might fit.

    Attributes:
        argument: as a caller writes it.
        need: bytes it takes on `device` at least.
        device: where.
        does: what it does, when that is more than to need so much.
    """

    argument: str
    need: int
    device: torch.device
    does: str = ""

    def __str__(self) -> str:
        return f"{self.argument} {self.does or f'needs {gigabytes(self.need)} and fits'}"


def check_fits(
    format: str,
    need: int,
    extra: int,
    device: torch.device,
    alternatives: Callable[[], Iterable[Alternative]],
    limit: int | None = None,
) -> None:
    """Refuse a model that cannot fit.

    Args:
        format: of the model's numbers, for the message.
        need: bytes of all its tensors on `device`.
        extra: bytes held beside them while they are read or converted.
        device: where they go.
        alternatives: other ways to load the same model; those that fit are named.
        limit: bytes that may be used; what is available when left out.

    Raises:
        CheckpointError: with the numbers, and the alternatives that would fit.
    """
    available = available_memory(device) if limit is None else limit
    if available is None or need + extra <= available:
        return
    fitting = [str(alternative) for alternative in alternatives() if _fits(alternative)][:3]
    advice = "; ".join(fitting) or (
        "no number format of the weights fits here: use a machine with more memory, or close other programs"
    )
    more = f" and {gigabytes(extra)} more while it is read" if extra else ""
    raise CheckpointError(
        f"the model needs {gigabytes(need)} in {format}{more}, "
        f"but {gigabytes(available)} are available on {device}; {advice}"
    )


def _fits(alternative: Alternative) -> bool:
    available = available_memory(alternative.device)
    return available is None or alternative.need <= available


def gigabytes(count: int) -> str:
    """12_345_678_901 -> "12.3 GB"; megabytes below one gigabyte."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def parse_bytes(size: int | str, what: str) -> int:
    """Bytes from 5_000_000_000, "5GB" or "2GiB".

    Raises:
        ConfigError: not a size, or nothing; the message begins with `what`.
    """
    number = 0.0
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", size.strip())
        unit = _UNITS.get(match[2].upper() or "B") if match else None
        number = float(match[1]) * unit if match and unit else 0.0
    elif isinstance(size, (int, float)) and not isinstance(size, bool):
        number = float(size)
    if number < 1:
        raise ConfigError(f"{what} is {size!r}; expected a number of bytes, or for example '5GB' or '500MB'")
    return int(number)


def _container_room() -> int | None:
    """What the limit of this process's container leaves, page cache counted as free; None without a limit."""
    for limit, usage in _CGROUPS:
        try:
            most, used = limit.read_text().strip(), int(usage.read_text())
            stat = (limit.parent / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if most == "max":
            return None
        cache = sum(int(line.split()[1]) for line in stat if line.split()[0] in _PAGE_CACHE)
        return max(int(most) - used + cache, 0)
    return None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
