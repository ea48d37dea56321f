"""The machine and this process: processor, versions, and memory of both."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

# Processor features that the kernels use: the name in /proc/cpuinfo, and the usual one.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimddp": "dot product",
    "i8mm": "int8 matrices",
    "bf16": "bf16",
    "sve": "SVE",
}
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def cpu_name() -> str:
    """The name of the processor."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def cpu_features() -> list[str]:
    """The FEATURES of the processor; empty where the system does not report them."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [name for flag, name in FEATURES.items() if flag in flags]


def cores() -> int:
    """Number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes of memory of the machine; None where the system does not report them."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(isa: str | None, threads: int) -> dict[str, Any]:
    """The machine in a report.

    Args:
        isa: the instruction set of the kernels in use; None without kernels.
        threads: number in use.
    """
    memory = total_memory()
    return {
        "cpu": cpu_name(),
        "features": cpu_features(),
        "cores": cores(),
        "threads": threads,
        "kernels": isa,
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": version("torch"),
        "pixtral": version("pixtral"),
    }


@dataclasses.dataclass(frozen=True)
class Resident:
    """Resident memory of this process in bytes.

    Attributes:
        peak: the maximum since the start of the process or since `reset_peak`.
        now: at this moment.
        own: anonymous memory (weights that were made here, the KV cache, activations).
        mapped: pages of files (memory-mapped checkpoints, libraries), which the system can drop.
    """

    peak: int
    now: int
    own: int
    mapped: int


def resident() -> Resident | None:
    """The resident memory now; None outside of Linux."""
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    if "VmHWM" not in kib or "RssAnon" not in kib:
        return None
    own = kib["RssAnon"] + kib.get("RssShmem", 0)
    return Resident(kib["VmHWM"] * 1024, kib["VmRSS"] * 1024, own * 1024, kib["RssFile"] * 1024)


def reset_peak() -> None:
    """Reset the peak of `resident`, where the system allows it."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
