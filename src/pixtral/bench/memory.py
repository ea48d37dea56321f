"""What this process holds in memory: now, at most, and how much of it is mapped from files."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Resident:
    """Bytes of this process in memory.

    Attributes:
        peak: at most, since the process began or since `reset_peak`.
        now: at this moment.
        own: of it, memory of its own (weights that were made here, the cache, work space).
        mapped: of it, pages of files (memory-mapped checkpoints, libraries), which the system can take back.
    """

    peak: int
    now: int
    own: int
    mapped: int


def resident() -> Resident | None:
    """As the system counts it; None where it does not say so (only Linux does)."""
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
    """Let the peak begin anew, where the system allows it."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
