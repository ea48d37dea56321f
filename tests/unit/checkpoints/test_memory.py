"""The estimate of memory: what is free, and the refusal with what would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pixtral.checkpoints import memory
from pixtral.checkpoints.memory import Alternative, available_memory, check_fits, gigabytes, parse_bytes
from pixtral.errors import CheckpointError, ConfigError

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
    check_fits("bfloat16", 25 * GB, GB, CPU, list)
    with pytest.raises(CheckpointError, match=r"but 24.0 GB are available on cpu"):
        check_fits("bfloat16", 25 * GB, GB, CPU, list, limit=24 * GB)
    monkeypatch.setattr(memory, "available_memory", lambda device: None)  # the system does not say
    check_fits("bfloat16", 25000 * GB, GB, CPU, list)


def test_refusals_name_the_settings_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cpu": 30 * GB, "cuda": 24 * GB}
    monkeypatch.setattr(memory, "available_memory", lambda device: free[device.type])
    gpu = torch.device("cuda")
    alternatives = [Alternative("a", 31 * GB, CPU), Alternative("b", 25 * GB, CPU), Alternative("c", 1, gpu, "does it")]
    says = (
        "the model needs 50.8 GB in float32 and 1.3 GB more while it is read, but 30.0 GB are available on cpu; "
        "b needs 25.0 GB and fits; c does it"
    )
    with pytest.raises(CheckpointError, match=says + "$"):
        check_fits("float32", 50_800_000_000, 1_342_000_000, CPU, lambda: alternatives)
    says = (
        "needs 25.0 GB in bfloat16, but 24.0 GB are available on cuda; no number format of the weights fits here: use a"
    )
    with pytest.raises(CheckpointError, match=says):
        check_fits("bfloat16", 25 * GB, 0, gpu, lambda: alternatives[:1])


def test_sizes_are_readable() -> None:
    assert [gigabytes(count) for count in (25_400_000_000, 1_000_000_000, 3_250_000)] == ["25.4 GB", "1.0 GB", "3.2 MB"]


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (5, 5),
        ("7", 7),
        ("5GB", 5 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("5 gb", 5 * 10**9),
        ("10mib", 10 * 2**20),
        (2.0, 2),
    ],
)
def test_sizes_are_read(size: Any, count: int) -> None:
    assert parse_bytes(size, "limit") == count


@pytest.mark.parametrize("size", ["", "GB", "5XB", "-1GB", 0, -3, None, True, "1e9", "0.1B", "5 parsecs", "0MB"])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"limit is .*; expected a number of bytes, or for example '5GB'"):
        parse_bytes(size, "limit")
