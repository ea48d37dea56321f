"""Tensors in the pages of their file: the same values, private, and gone with the last tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixtral.checkpoints.safetensors_io import Mappings, can_map, read_header

STATE = {
    "bytes": torch.arange(7, dtype=torch.uint8),
    "matrix": torch.randn(40, 3).bfloat16(),
    "floats": torch.randn(5),
    "none": torch.empty(0, 3),
}


@pytest.mark.parametrize("rows", [True, False])
def test_the_same_values(rows: bool, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    header, mappings = read_header(tmp_path / "a.safetensors"), Mappings()
    for name, info in header.items():
        if name == "none":
            assert not can_map(info)
            continue
        found = mappings.tensor(info, rows=rows)
        assert found.dtype == STATE[name].dtype
        assert torch.equal(found, STATE[name])


def test_writing_changes_a_copy(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(STATE, file)
    before = file.read_bytes()
    info = read_header(file)["matrix"]
    found = Mappings().tensor(info)
    found.zero_()
    assert not found.any()
    assert file.read_bytes() == before
    assert torch.equal(Mappings().tensor(info), STATE["matrix"])


def test_a_file_that_is_replaced_or_removed_stays_mapped(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(STATE, file)
    found = Mappings().tensor(read_header(file)["floats"])
    save_file({"floats": torch.zeros(5)}, tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").replace(file)
    assert torch.equal(found, STATE["floats"])
    file.unlink()
    assert torch.equal(found, STATE["floats"])


def test_data_that_lies_askew_is_not_mapped(tmp_path: Path) -> None:
    """Other programs need not align their tensors."""
    file = tmp_path / "a.safetensors"
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(5))
    found = read_header(file)
    assert can_map(found["a"])
    assert not can_map(found["b"])
