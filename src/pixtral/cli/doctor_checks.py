"""The checks of `pixtral doctor`. They are independent: a failure of one does not hide the others."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixtral.bench import machine
from pixtral.errors import PixtralError

EXTRAS = ("bitsandbytes", "accelerate", "transformers", "mistral-common", "safetensors", "huggingface-hub")
_WANTED_FREE = 8 << 30  # bytes that Pixtral-12B in 4 bits takes
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        found: the finding in words.
        facts: the finding as values.
        problem: whether it keeps this package from working.
        advice: what to do; empty where nothing is to be done.
    """

    name: str
    found: str
    facts: dict[str, Any] = field(default_factory=dict)
    problem: bool = False
    advice: str = ""


def checks() -> Iterator[Check]:
    """All checks, in the order in which they are printed."""
    for check in (_versions, _torch, _processor, _kernels, _memory, _devices, _extras, _hub, _embedded):
        yield check()


def _versions() -> Check:
    from pixtral import __file__, __version__

    python = platform.python_version()
    where = Path(__file__).parent
    facts = {"pixtral": __version__, "python": python, "folder": str(where), "system": platform.platform(terse=True)}
    return Check("pixtral", f"{__version__}, Python {python} on {facts['system']}, in {where}", facts)


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check(
            "torch",
            f"cannot be imported: {error}",
            {"version": None},
            True,
            "reinstall it: pip install torch",
        )
    threads = torch.get_num_threads()
    facts: dict[str, Any] = {"version": torch.__version__, "threads": threads}
    check = Check("torch", f"{torch.__version__}, {threads} threads", facts)
    usable = min(machine.cores(), _cpu_quota() or machine.cores())
    if threads > usable:
        check.advice = f"{threads} threads share {usable} cores, which slows all of them; say --threads {usable}"
    return check


def _processor() -> Check:
    features = machine.cpu_features()
    facts: dict[str, Any] = {"name": machine.cpu_name(), "cores": machine.cores(), "features": features}
    quota = _cpu_quota()
    found = f"{facts['name']}, {facts['cores']} cores, {', '.join(features) or 'no features reported'}"
    if quota is not None and quota < facts["cores"]:
        facts["quota"] = quota
        found += f", of which this container may use {quota}"
    return Check("processor", found, facts)


def _kernels() -> Check:
    from pixtral.ops.native.library import ISAS, kernels

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            library = kernels()
        except PixtralError as error:
            return Check("kernels", f"refused: {error}", {"built": True, "isa": None}, True, "unset PIXTRAL_ISA")
    if library is None:
        reason = str(caught[0].message) if caught else "they were not built"
        advice = "install a C++17 compiler and reinstall pixtral"
        return Check("kernels", f"none: {reason}", {"built": False, "isa": None}, advice=advice)
    facts: dict[str, Any] = {
        "built": True,
        "path": library.path,
        "isa": library.isa,
        "best_isa": library.best_isa,
        "forced": os.environ.get("PIXTRAL_ISA"),
    }
    if library.isa != library.best_isa:
        why = f"PIXTRAL_ISA asks for it; this processor could do {library.best_isa}"
    elif library.isa == ISAS[-1]:
        why = "the best there is"
    else:
        faster = "with BF16" if library.isa == "avx512" else "with VNNI"
        why = f"the best of this processor; AVX-512 {faster} would be faster"
    check = Check("kernels", f"{library.isa} ({why}), {library.path}", facts)
    if library.isa != library.best_isa:
        check.advice = "unset PIXTRAL_ISA for full speed"
    elif library.isa == "portable":
        check.advice = "this processor has no AVX2: 4-bit and 8-bit layers work, but are many times slower"
    return check


def _memory() -> Check:
    total = machine.total_memory()
    try:
        import torch

        from pixtral.checkpoints.memory import available_memory, gigabytes
    except (ImportError, OSError):
        return Check("memory", "unknown without torch", {"total": total, "available": None})
    free = available_memory(torch.device("cpu"))
    facts = {"total": total, "available": free}
    said = [f"{gigabytes(value)} {name}" for name, value in (("in all", total), ("available", free)) if value]
    check = Check("memory", ", ".join(said) or "the system does not say", facts)
    if free is not None and free < _WANTED_FREE:
        check.advice = f"Pixtral-12B in 4 bits takes about {gigabytes(_WANTED_FREE)}: close other programs"
    return check


def _devices() -> Check:
    try:
        import torch
    except (ImportError, OSError):
        return Check("devices", "unknown without torch", {"cuda": [], "mps": False})
    cuda: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        cuda.append({"name": about.name, "memory": about.total_memory})
    mps = torch.backends.mps.is_available()
    names = [f"cuda:{i} {one['name']} ({one['memory'] / 1e9:.0f} GB)" for i, one in enumerate(cuda)]
    names += ["mps"] if mps else []
    return Check("devices", ", ".join(names) or "no GPU; the processor computes", {"cuda": cuda, "mps": mps})


def _extras() -> Check:
    found = {name: machine.version(name) for name in EXTRAS}
    there = [f"{name} {version}" for name, version in found.items() if version]
    missing = [name for name, version in found.items() if not version]
    text = ", ".join(there) + (f"; not installed: {', '.join(missing)}" if missing else "")
    return Check("packages", text, dict(found))


def _hub() -> Check:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        return Check("hub", f"cannot be imported: {error}", {}, True, "pip install huggingface-hub")
    folder = Path(constants.HF_HUB_CACHE)
    there = next((one for one in (folder, *folder.parents) if one.is_dir()), None)
    free = None if there is None else shutil.disk_usage(there).free
    writable = there is not None and os.access(there, os.W_OK)
    facts = {"cache": str(folder), "free": free, "writable": writable, "offline": constants.HF_HUB_OFFLINE}
    found = str(folder) + ("" if free is None else f", {free / 1e9:.0f} GB free on its disk")
    check = Check("hub cache", found + (", offline (HF_HUB_OFFLINE)" if facts["offline"] else ""), facts)
    if not writable:
        check.advice = f"{there} cannot be written; set HF_HOME to a folder that can"
    return check


def _embedded() -> Check:
    try:
        from pixtral.assets import tiny_path
        from pixtral.checkpoints.report import inspect_checkpoint
        from pixtral.models import NETWORKS

        report = inspect_checkpoint(tiny_path(), NETWORKS)
    except (PixtralError, ImportError, OSError) as error:
        return Check("embedded model", f"cannot be read: {error}", {"ok": False}, True, "reinstall pixtral")
    facts = {"ok": report.ok, "parameters": report.total, "folder": str(report.folder)}
    if not report.ok:
        problems = "; ".join(report.problems)
        return Check("embedded model", f"broken: {problems}", facts, True, "reinstall pixtral")
    return Check("embedded model", f"complete, {report.total / 1e6:.1f} million parameters", facts)


def _cpu_quota() -> int | None:
    """The CPU limit of a container in cores, rounded up; None without a limit."""
    try:
        most, period = _QUOTA.read_text(encoding="ascii").split()
        return None if most == "max" else -(-int(most) // int(period))
    except (OSError, ValueError):
        return None


def to_dict(found: list[Check]) -> dict[str, Any]:
    """For --json."""
    return {
        "ok": not any(check.problem for check in found),
        "checks": {check.name: check.facts for check in found},
        "problems": [_sentence(check) for check in found if check.problem],
        "warnings": [_sentence(check) for check in found if check.advice and not check.problem],
    }


def _sentence(check: Check) -> str:
    return f"{check.name}: {check.found}; {check.advice}"
