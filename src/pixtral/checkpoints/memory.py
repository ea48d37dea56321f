"""How much memory a model will take and how much there is, so that a hopeless load is refused before it begins."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pixtral.errors import CheckpointError

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
_PAGE_CACHE = ("inactive_file", "active_file")  # given back when memory is wanted


def available_memory(device: torch.device) -> int | None:
    """Bytes that a new model could take on a device; None when the system does not say.

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


def check_fits(need: int, one_tensor: int, stored: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model that evidently does not fit.

    Args:
        need: bytes of all parameters in `dtype`.
        one_tensor: bytes held beside them while a tensor is converted; 0 when all are used as stored.
        stored: number of parameters, to say what another dtype would need.
        dtype: what the parameters become.
        device: where they go.

    Raises:
        CheckpointError: with the numbers, and the dtype or device that would fit.
    """
    available = available_memory(device)
    if available is None or need + one_tensor <= available:
        return
    smaller = 2 * stored
    if dtype.itemsize > 2 and smaller + one_tensor <= available:
        advice = f'dtype="bfloat16" needs {gigabytes(smaller)} and fits'
    elif device.type != "cpu" and need + one_tensor <= (available_memory(torch.device("cpu")) or 0):
        advice = 'device_map="cpu" has room for it'
    else:
        advice = "no dtype of the plain weights fits here: use a machine with more memory, or close other programs"
    extra = f" and {gigabytes(one_tensor)} more while it is read" if one_tensor else ""
    raise CheckpointError(
        f"the model needs {gigabytes(need)} in {str(dtype).removeprefix('torch.')}{extra}, "
        f"but {gigabytes(available)} are available on {device}; {advice}"
    )


def gigabytes(count: int) -> str:
    """12_345_678_901 -> "12.3 GB"; megabytes below one gigabyte."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


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
