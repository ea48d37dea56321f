"""The safetensors reader and writer against the safetensors library, broken files, and mapped tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixtral.checkpoints.safetensors_io import DTYPES, Mappings, can_map, read_header, read_tensor, write_file
from pixtral.errors import CheckpointError

SAMPLES = {
    "matrix": torch.arange(12, dtype=torch.float32).view(3, 4) / 7,
    "bf16": torch.randn(5, 3).bfloat16(),
    "half": torch.randn(2, 2, 2).half(),
    "double": torch.randn(3).double(),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "ids": torch.arange(5),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "fp8": torch.randn(4).to(torch.float8_e4m3fn),
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    save_file(SAMPLES, tmp_path / "a.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "a.safetensors")
    assert header.keys() == SAMPLES.keys()
    for name, expected in SAMPLES.items():
        found = read_tensor(header[name])
        assert (found.dtype, found.shape, bits(found)) == (expected.dtype, expected.shape, bits(expected)), name
        assert header[name].numel == expected.numel()


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    samples = {**SAMPLES, "strided": torch.arange(12.0).view(3, 4).T}
    write_file(file, {name: (value.dtype, value.shape) for name, value in samples.items()}, samples.values())
    found = load_file(file)
    assert {name: bits(value) for name, value in found.items()} == {n: bits(v) for n, v in samples.items()}
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers insists on it
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0  # the data begins aligned


def test_every_dtype_has_one_code() -> None:
    assert len(set(DTYPES.values())) == len(DTYPES)


def test_a_scratch_buffer_holds_the_bytes(tmp_path: Path) -> None:
    save_file(SAMPLES, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    scratch = torch.zeros(1000, dtype=torch.uint8)
    found = read_tensor(header["matrix"], scratch)
    assert torch.equal(found, SAMPLES["matrix"])
    assert found.data_ptr() == scratch.data_ptr()


def test_a_tensor_does_not_hang_on_the_file(tmp_path: Path) -> None:
    """A memory map would change with the file, or crash when it shrinks."""
    file = tmp_path / "a.safetensors"
    save_file(SAMPLES, file)
    found = read_tensor(read_header(file)["matrix"])
    file.write_bytes(b"")
    assert torch.equal(found, SAMPLES["matrix"])


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A breakage that edits the JSON header."""

    def apply(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return apply


BREAKAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "not a whole safetensors file: 0 bytes, not even a header"),
    "seven bytes": (lambda content: content[:7], "not even a header"),
    "header cut": (lambda content: content[:100], "its header alone claims"),
    "one byte short": (lambda content: content[:-1], r"is cut short: \d+ bytes of \d+"),
    "one byte long": (lambda content: content + b"x", "1 bytes after its last tensor"),
    "huge header": (lambda content: b"\xff" * 8 + content[8:], "its header alone claims"),
    "not JSON": (lambda content: content[:8] + b"x" + content[9:], "corrupt safetensors header"),
    "not UTF-8": (lambda content: content[:8] + b"\xff" + content[9:], "corrupt safetensors header"),
    "LFS pointer": (
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "Git LFS pointer, not the weights; run `git lfs pull`",
    ),
    "a list": (lambda content: (2).to_bytes(8, "little") + b"[]", "corrupt safetensors header"),
    "unknown dtype": (rewritten(lambda h: h["b"].update(dtype="F4")), "tensor 'b' has dtype 'F4'; known: BF16"),
    "no offsets": (rewritten(lambda h: h["b"].pop("data_offsets")), "corrupt safetensors header"),
    "shape lies": (rewritten(lambda h: h["b"].update(shape=[3])), r"spans 8 bytes but is F32 of shape \[3\]"),
    "negative": (rewritten(lambda h: h["b"].update(shape=[-1, -2])), r"has shape \[-1, -2\]"),
    "true is no number": (rewritten(lambda h: h["b"].update(shape=[True, 2])), r"has shape \[True, 2\]"),
    "overlap": (rewritten(lambda h: h["b"].update(data_offsets=[0, 8])), "overlaps or gaps"),
    "backwards": (rewritten(lambda h: h["b"].update(data_offsets=[8, 0], shape=[0])), "spans -8 bytes"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_file_is_refused_before_anything_is_read(name: str, tmp_path: Path) -> None:
    change, says = BREAKAGES[name]
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, file)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointError, match=says):
        read_header(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; fetch it again"):
        read_header(tmp_path / "a.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, file)
    info = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="became shorter while tensor 'a' was read"):
        read_tensor(info)


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
