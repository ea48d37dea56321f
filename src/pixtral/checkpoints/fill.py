"""Reading the tensors of a plan into a model on `meta`: each once, without a copy where dtype and row order allow."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixtral.checkpoints import names
from pixtral.checkpoints.offload import Offloaded
from pixtral.checkpoints.placement import Placement, device_of
from pixtral.checkpoints.plan import Contents, Plan
from pixtral.checkpoints.safetensors_io import Mappings, TensorInfo, can_map, read_tensor
from pixtral.errors import CheckpointError, QuantizationError
from pixtral.quantization import Quantizer
from pixtral.quantization.base import BLOCK_BYTES, block_rows, replace_module


@dataclass(frozen=True)
class Target:
    """What the tensors of a checkpoint become.

    Args:
        dtype: of everything in full precision.
        placement: of the modules.
        offloaded: holds the tensors on the disk.
        heads: parameter -> heads, for those whose rows lie in Mistral's rotary order and have to be moved.
        quantizer: fills the swapped layers; None when there are none.
    """

    dtype: torch.dtype
    placement: Placement
    offloaded: Offloaded
    heads: Mapping[str, int]
    quantizer: Quantizer | None = None

    def place(self, name: str) -> torch.device:
        """The device of a parameter, or of a quantized layer; the CPU for what goes to the disk from there."""
        return torch.device("cpu") if self.on_disk(name) else device_of(self.placement.of(name))

    def on_disk(self, name: str) -> bool:
        """Whether a parameter is read from the disk whenever it is needed."""
        return self.placement.of(name) == "disk"

    def takes(self, name: str, info: TensorInfo) -> bool:
        """Whether a stored parameter can be used as it is."""
        return info.dtype == self.dtype and self.place(name).type == "cpu" and name not in self.heads

    def maps(self, name: str, info: TensorInfo, owned: bool) -> bool:
        """Whether a tensor is mapped from its file instead of read; `owned` when a scheme stored it."""
        if self.quantizer is None or not self.quantizer.maps(name) or self.place(name).type != "cpu":
            return False
        if self.on_disk(name):
            return False
        return can_map(info) and (owned or self.takes(name, info))


def fill(model: nn.Module, plan: Plan, contents: Contents, target: Target, progress: bool) -> None:
    """Read every tensor of the plan, in the order of the files, into the model.

    Raises:
        CheckpointError: tied parameters that differ, a file that became shorter, or weights that are not numbers.
    """
    filler = Filler(model, plan, contents, target)
    title = f"Loading weights ({contents.files.layout} layout)"
    with byte_bar(progress, sum(info.nbytes for info in plan.sources.values()), title) as advance:
        for name in reading_order(plan):
            filler.take(name)
            advance(plan.sources[name].nbytes)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, tensor in tensors if tensor.is_meta and name not in target.offloaded]
    assert not left, f"left without a value: {left}"


def reading_order(plan: Plan) -> list[str]:
    """The names of a plan in the order of the files, except that what a tied copy is compared with comes first."""
    order = sorted(plan.sources, key=lambda name: (plan.sources[name].file, plan.sources[name].start))
    return sorted(order, key=lambda name: name in plan.tied_copies)


def scratch_bytes(plan: Plan, target: Target) -> int:
    """Bytes held beside the finished tensors while the largest one is converted; 0 if none is converted."""
    quantizer, most = target.quantizer, 0
    for name, info in plan.sources.items():
        if name in plan.wanted.owners:
            assert quantizer is not None
            layer = plan.wanted.layers[plan.wanted.owners[name][0]]
            most = max(most, quantizer.work_bytes(layer) + (0 if quantizer.stored else _block_bytes(info)))
        elif not target.takes(name, info):
            written = info.numel * target.dtype.itemsize if target.on_disk(name) else 0
            most = max(most, info.nbytes + written)
    return most


def written_bytes(plan: Plan, target: Target) -> int:
    """Bytes that are written to the disk because the checkpoint does not store them as they are used."""
    moved = (n for n, info in plan.sources.items() if target.on_disk(n) and not target.takes(n, info))
    return sum(plan.sources[name].numel * target.dtype.itemsize for name in moved if name not in plan.tied_copies)


def rows_only(name: str, info: TensorInfo, target: Target) -> bool:
    """Whether only the rows that are used will take memory."""
    return name.endswith("embed_tokens.weight") and target.maps(name, info, owned=False)


class Filler:
    """Fills a model's parameters and quantized layers one by one."""

    def __init__(self, model: nn.Module, plan: Plan, contents: Contents, target: Target) -> None:
        self.model = model
        self.plan = plan
        self.contents = contents
        self.target = target
        self.scratch = _Scratch()
        self.mappings = Mappings()
        self.groups = names.tied_groups(model)
        self.pending: dict[str, dict[str, Tensor]] = {}

    def take(self, name: str) -> None:
        """Read one tensor of the plan."""
        if name in self.plan.wanted.owners:
            self._owned(name)
        elif name in self.plan.tied_copies:
            if not torch.equal(self._value(name), self._filled(self.plan.tied_copies[name])):
                self._refuse_copy(name)
        elif self.target.on_disk(name):
            self._offload(name)
        else:
            value = self._value(name)
            for alias in self.groups[name]:
                _assign(self.model, alias, self.groups[name][0], value)
            if rows_only(name, self.plan.sources[name], self.target):
                self._leave_in_file(name)

    def _leave_in_file(self, name: str) -> None:
        path = name.removesuffix(".weight")
        old = self.model.get_submodule(path)
        assert isinstance(old, nn.Embedding)
        replace_module(self.model, path, self.mappings.rows(old, self.plan.sources[name]))

    def _offload(self, name: str) -> None:
        """Leave a parameter on the disk, or bring it there in the form that is used."""
        info, offloaded, first = self.plan.sources[name], self.target.offloaded, self.groups[name][0]
        if not self.target.takes(name, info):
            info = offloaded.write(name, self._value(name))
        for alias in self.groups[name]:
            offloaded.keep(alias, info)
            _assign(self.model, alias, first, torch.empty(info.shape, dtype=info.dtype, device="meta"))

    def _filled(self, name: str) -> Tensor:
        """A parameter that was read already."""
        found = self.model.get_parameter(name)
        return self.target.offloaded[name] if found.is_meta else found

    def _value(self, name: str) -> Tensor:
        """One parameter."""
        info, target = self.plan.sources[name], self.target
        if target.maps(name, info, owned=False):
            return self.mappings.tensor(info, rows=name.endswith("embed_tokens.weight"))
        if target.takes(name, info):
            return read_tensor(info)
        stored = read_tensor(info, self.scratch.bytes(info.nbytes))
        value = torch.empty(info.shape, dtype=target.dtype, device=target.place(name))
        heads = target.heads.get(name)
        if heads is None:
            return value.copy_(stored)
        moved = names.half_split_view(stored, heads)
        value.view(moved.shape).copy_(moved)
        return value

    def _owned(self, name: str) -> None:
        """A tensor of a quantized layer: quantized now, or kept until the last one of the layer is there."""
        quantizer, info = self.target.quantizer, self.plan.sources[name]
        assert quantizer is not None
        path, suffix = self.plan.wanted.owners[name]
        layer, device = self.plan.wanted.layers[path], self.target.place(path)
        if not quantizer.stored:
            source = _StoredWeight(info, self.target.heads.get(name), self.scratch)
            if name in self.plan.tied_copies:
                self._compare(name, source)
            try:
                quantizer.quantize(layer, source, device)
            except QuantizationError as error:
                raise CheckpointError(f"{info.file}: {info.name!r} cannot be quantized: {error}") from error
            return
        kept = self.pending.setdefault(path, {})
        mapped = self.target.maps(name, info, owned=True)
        kept[suffix] = self.mappings.tensor(info) if mapped else read_tensor(info)
        if all(f"{path}.{other}" not in self.plan.sources or other in kept for other in quantizer.slots(layer)):
            quantizer.restore(layer, self.pending.pop(path), device)

    def _compare(self, name: str, source: _StoredWeight) -> None:
        """Refuse a tied output layer that the files hold with other values than the embeddings."""
        first = self._filled(self.plan.tied_copies[name])
        for start, rows in source.blocks():
            if not torch.equal(rows.to(first.device, first.dtype), first[start : start + len(rows)]):
                self._refuse_copy(name)

    def _refuse_copy(self, name: str) -> None:
        raise CheckpointError(
            f"the configuration ties {name!r} to {self.plan.tied_copies[name]!r}, but {self.contents.files.folder} "
            "holds different values for them; set tie_word_embeddings to false, or remove one from the files"
        )


@contextmanager
def byte_bar(wanted: bool, total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes on stderr, or nothing; yields the function that advances it."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _block_bytes(info: TensorInfo) -> int:
    return min(info.nbytes, BLOCK_BYTES)


class _Scratch:
    """One buffer for all tensors that are converted after reading; many buffers would fragment the heap."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def bytes(self, count: int) -> Tensor:
        """(count,) uint8, valid until the next call."""
        if len(self._memory) < count:
            self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # freed before the larger one is made
            self._memory = torch.empty(count, dtype=torch.uint8, device="cpu")
        return self._memory[:count]


class _StoredWeight:
    """A full-precision weight in a file; see `quantization.base.WeightSource`."""

    def __init__(self, info: TensorInfo, heads: int | None, scratch: _Scratch) -> None:
        self.info = info
        self.heads = heads
        self.scratch = scratch

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return self.info.shape

    @property
    def dtype(self) -> torch.dtype:
        """The file's."""
        return self.info.dtype

    def read(self) -> Tensor:
        """All of it."""
        if self.heads is None:
            return read_tensor(self.info)
        return names.to_half_split(read_tensor(self.info, self.scratch.bytes(self.info.nbytes)), self.heads)

    def blocks(self, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Blocks of whole heads where rows have to be moved inside of them."""
        rows = self.shape[0]
        head = 1 if self.heads is None else rows // self.heads
        step = block_rows(self.info.nbytes // max(rows, 1), math.lcm(multiple, head))
        for start in range(0, rows, step):
            part = self.info.rows(start, min(start + step, rows))
            block = read_tensor(part, self.scratch.bytes(part.nbytes))
            yield start, block if self.heads is None else names.to_half_split(block, len(block) // head)


def _assign(model: nn.Module, name: str, first: str, value: Tensor) -> None:
    """Put a value in the place of a meta parameter; tied names share one Parameter."""
    path, _, leaf = name.rpartition(".")
    old = model.get_parameter(name)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if name == first else model.get_parameter(first)
    model.get_submodule(path).register_parameter(leaf, new)
