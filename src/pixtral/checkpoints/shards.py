"""Which tensor goes into which weight file, and the index that says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch

Shapes: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def total_bytes(shapes: Shapes) -> int:
    """Of all tensors."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def plan_shards(shapes: Shapes, stem: str, limit: int) -> dict[str, list[str]]:
    """File name -> the tensors in it, in their order; a file is larger than the limit only for a single tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in shapes:
        nbytes = total_bytes({name: shapes[name]})
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    count = len(groups)
    return {f"{stem}-{number:05d}-of-{count:05d}.safetensors": group for number, group in enumerate(groups, 1)}


def write_index(folder: Path, stem: str, shards: Mapping[str, list[str]], shapes: Shapes) -> list[str]:
    """Write the index of several shards; its name in a list, which is empty for a single file."""
    if len(shards) == 1:
        return []
    where = {name: file for file, group in shards.items() for name in group}
    index = {"metadata": {"total_size": total_bytes(shapes)}, "weight_map": dict(sorted(where.items()))}
    file = f"{stem}.safetensors.index.json"
    (folder / file).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [file]
