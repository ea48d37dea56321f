"""quantize_checkpoint: a quantized copy of a checkpoint, made layer by layer without loading the whole model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pixtral.checkpoints.config import Networks
from pixtral.checkpoints.fill import Filler, Target, byte_bar, reading_order
from pixtral.checkpoints.layout import Files
from pixtral.checkpoints.memory import parse_bytes
from pixtral.checkpoints.offload import Offloaded
from pixtral.checkpoints.opening import Opened, open_checkpoint
from pixtral.checkpoints.placement import Placement
from pixtral.checkpoints.plan import refuse
from pixtral.checkpoints.safetensors_io import FileWriter, aligned
from pixtral.checkpoints.save import Shapes, check_room, config_json, plan_shards, staging, total_bytes, write_index
from pixtral.configuration.quantization import QuantizationConfig
from pixtral.errors import CheckpointError
from pixtral.hub import saving
from pixtral.quantization import QuantizationArguments
from pixtral.quantization.groupwise import GroupwiseQuantizer


@dataclass(frozen=True)
class Quantized:
    """What `quantize_checkpoint` made.

    Args:
        folder: the new checkpoint.
        files: in it, by name.
        before, after: bytes of all tensors.
    """

    folder: Path
    files: tuple[str, ...]
    before: int
    after: int


def quantize_checkpoint(
    files: Files,
    out: Path,
    config: QuantizationConfig,
    networks: Networks,
    *,
    dtype: torch.dtype | None = None,
    copies: Sequence[Path] = (),
    max_shard_size: int | str = "5GB",
    progress: bool = True,
) -> Quantized:
    """Write a quantized copy of a full-precision checkpoint; memory is one quantized layer and a block of its weights.

    Written into a hidden folder beside `out`, which is renamed when it is complete. It is removed if the run fails, and
    by the next run if this one is killed.

    Args:
        files: the checkpoint, in either layout; the copy is in Hugging Face's.
        out: a folder that is not there yet, or empty.
        config: how to quantize.
        networks: class of each architecture.
        dtype: of what is not quantized; as stored when left out.
        copies: other files that belong to the checkpoint (tokenizer, processor); copied under their names.
        max_shard_size: bytes of one weight file.
        progress: show a bar, if stderr is a terminal.

    Raises:
        CheckpointError: the checkpoint cannot be read, is quantized already or does not fit; `out` is not empty, is
            being written by another process, or there is no room.
        ConfigError: the network cannot be quantized like this.
    """
    limit = parse_bytes(max_shard_size, "max_shard_size")
    found = open_checkpoint(files, networks, dtype=dtype, asked=QuantizationArguments(config=config))
    refuse(found.plan, found.contents)
    if not isinstance(found.quantizer, GroupwiseQuantizer) or found.quantizer.stored:
        raise CheckpointError(f"{files.folder} is quantized already; quantize the original checkpoint")
    with saving(out.parent):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CheckpointError(f"{out} is there already and not empty; choose another folder, or remove it")
        shapes = _shapes(found, GroupwiseQuantizer(config, stored=True))
        after = total_bytes(shapes)
        check_room(out.parent, after + sum(path.stat().st_size for path in copies))
        with staging(out.parent / f".{out.name}.partial") as place:
            written = _write(found, found.quantizer, place.folder, shapes, limit, progress)
            for path in copies:
                shutil.copyfile(path, place.folder / path.name)
            text = config_json(found.kind, found.config, found.dtype, found.quantizer)
            (place.folder / "config.json").write_text(text, encoding="utf-8")
            place.become(out)
    before = sum(info.nbytes for info in found.contents.tensors.values())
    return Quantized(out, (*written, *(path.name for path in copies), "config.json"), before, after)


def _shapes(found: Opened, stored: GroupwiseQuantizer) -> Shapes:
    """What the copy will hold: name in its files -> dtype and shape, in the order of `aligned`."""
    wanted = found.plan.wanted
    ours: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, slot in wanted.slots.items():
        if name not in wanted.owners and wanted.tied[name] == name:
            assert slot.shape is not None
            ours[name] = (found.dtype, slot.shape)
    for layer, module in wanted.layers.items():
        for suffix, slot in stored.slots(module).items():
            assert slot.shape is not None and slot.dtype is not None
            ours[f"{layer}.{suffix}"] = (slot.dtype, slot.shape)
    return {_spelled(found, name): ours[name] for name in aligned(ours)}


def _spelled(found: Opened, name: str) -> str:
    """The name in the files of a tensor of the model."""
    canonical = found.kind.own.canonical_stored(name, GroupwiseQuantizer.suffixes)
    assert canonical is not None
    stored = found.kind.published.spell_stored(canonical, GroupwiseQuantizer.suffixes)
    assert stored is not None
    return stored


def _write(
    found: Opened, quantizer: GroupwiseQuantizer, folder: Path, shapes: Shapes, limit: int, progress: bool
) -> list[str]:
    """Write the weights; the names of the files. Each tensor is written and freed as soon as it is read."""
    plan = found.plan
    target = Target(found.dtype, Placement({"": "cpu"}), Offloaded(None), found.heads, quantizer)
    filler = Filler(found.model, plan, found.contents, target)
    shards = plan_shards(shapes, "model", limit)
    total = sum(info.nbytes for info in plan.sources.values())
    with ExitStack() as stack, byte_bar(progress, total, "Quantizing") as advance:
        files: dict[str, FileWriter] = {}
        for file, group in shards.items():
            writer = stack.enter_context(FileWriter(folder / file, {name: shapes[name] for name in group}))
            files |= dict.fromkeys(group, writer)
        for name in reading_order(plan):
            filler.take(name)
            for made, tensor in _made(found, quantizer, name).items():
                stored = _spelled(found, made)
                files[stored].write(stored, tensor)
            advance(plan.sources[name].nbytes)
    return [*shards, *write_index(folder, "model", shards, shapes)]


def _made(found: Opened, quantizer: GroupwiseQuantizer, name: str) -> dict[str, Tensor]:
    """The tensors that were just read, by name; removed from the model."""
    wanted = found.plan.wanted
    if name in wanted.owners:
        path = wanted.owners[name][0]
        layer = wanted.layers[path]
        tensors = {f"{path}.{suffix}": value for suffix, value in quantizer.tensors(layer).items()}
        layer.to("meta")
        return tensors
    if name in found.plan.tied_copies:
        return {}
    first = wanted.tied[name]
    value = found.model.get_parameter(first).detach()
    if first not in found.plan.tied_copies.values():  # else it is still to be compared
        path, _, leaf = first.rpartition(".")
        found.model.get_submodule(path).register_parameter(leaf, nn.Parameter(value.to("meta")))
    return {first: value}
