"""Shards: every tensor in one file, in order, none above the limit but for a single tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pixtral.checkpoints.save import plan_shards, total_bytes, write_index

SHAPES = {
    "a": (torch.float32, (10,)),
    "b": (torch.uint8, (25,)),
    "c": (torch.bfloat16, (100,)),
    "d": (torch.int8, (0, 4)),
    "e": (torch.float32, ()),
}


@pytest.mark.parametrize(
    ("limit", "groups"),
    [
        (1000, ["abcde"]),
        (100, ["ab", "c", "de"]),
        (65, ["ab", "c", "de"]),
        (64, ["a", "b", "c", "de"]),
        (1, ["a", "b", "c", "d", "e"]),
    ],
)
def test_groups(limit: int, groups: list[str]) -> None:
    assert total_bytes(SHAPES) == 40 + 25 + 200 + 0 + 4
    found = plan_shards(SHAPES, "model", limit)
    assert ["".join(group) for group in found.values()] == groups
    names = list(found)
    assert names == (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    )


def test_the_index(tmp_path: Path) -> None:
    assert write_index(tmp_path, "model", plan_shards(SHAPES, "model", 1000), SHAPES) == []
    assert list(tmp_path.iterdir()) == []
    shards = plan_shards(SHAPES, "model", 100)
    assert write_index(tmp_path, "model", shards, SHAPES) == ["model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 269}
    assert index["weight_map"] == {name: file for file, group in shards.items() for name in group}
