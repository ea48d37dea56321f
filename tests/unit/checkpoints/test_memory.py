"""The estimate of memory: what is free, and the refusal with what would fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pixtral.checkpoints import memory
from pixtral.checkpoints.memory import available_memory, check_fits, gigabytes
from pixtral.errors import CheckpointError

CPU = torch.device("cpu")
GB = 10**9


def test_this_machine_has_some() -> None:
    available = available_memory(CPU)
    assert available is not None
    assert 10**7 < available < 10**15


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_CGROUPS", ((limit, usage),))
    unlimited = available_memory(CPU)
    assert unlimited is not None
    limit.write_text("30000000\n")
    usage.write_text("25000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 4000000\nactive_file 1000000\nslab 7\n")
    assert available_memory(CPU) == 10_000_000
    limit.write_text("max\n")
    assert available_memory(CPU) > 10_000_000


def test_what_fits_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 26 * GB)
    check_fits(25 * GB, GB, 12 * GB, torch.bfloat16, CPU)
    monkeypatch.setattr(memory, "available_memory", lambda device: None)  # the system does not say
    check_fits(25000 * GB, GB, 12 * GB, torch.bfloat16, CPU)


def test_refusals_say_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cpu": 30 * GB, "cuda": 24 * GB}
    monkeypatch.setattr(memory, "available_memory", lambda device: free[device.type])
    says = (
        r"needs 50.8 GB in float32 and 1.3 GB more while it is read, but 30.0 GB are available on cpu; "
        r"dtype=\"bfloat16\" needs 25.4 GB"
    )
    with pytest.raises(CheckpointError, match=says):
        check_fits(50_800_000_000, 1_342_000_000, 12_700_000_000, torch.float32, CPU)
    with pytest.raises(CheckpointError, match=r'24.0 GB are available on cuda; device_map="cpu" has room for it'):
        check_fits(25 * GB, GB, 12 * GB, torch.bfloat16, torch.device("cuda"))
    with pytest.raises(CheckpointError, match=r"needs 25.0 GB in bfloat16, but 24.0 GB"):
        check_fits(25 * GB, 0, 12 * GB, torch.bfloat16, torch.device("cuda"))
    with pytest.raises(CheckpointError, match="no dtype of the plain weights fits here"):
        check_fits(248 * GB, GB, 124 * GB, torch.bfloat16, CPU)


def test_sizes_are_readable() -> None:
    assert [gigabytes(count) for count in (25_400_000_000, 1_000_000_000, 3_250_000)] == ["25.4 GB", "1.0 GB", "3.2 MB"]
