"""The safetensors format: reading and writing tensor by tensor, and mapping files into memory.

Tensors are read into memory of their own: a mapped file counts in the process's memory beside the model, and a file
that is overwritten or truncated while mapped kills the process. Only quantized models on a CPU are mapped, whose
weights are used as they are stored: they load at once, and their pages are shared among processes.

Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, then the data
(huggingface/safetensors README).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pixtral.errors import CheckpointError
from pixtral.layers.file_embedding import FileEmbedding
from pixtral.ops.runtime import empty_huge

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the reference implementation's limit
ALIGNMENT = 64  # bytes; a vector register's and a cache line's


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: file, absolute byte range, and what the bytes are."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.stop - self.start

    def rows(self, first: int, last: int) -> TensorInfo:
        """A part of it: rows from `first` to below `last`."""
        size = self.nbytes // self.shape[0]
        return replace(
            self, shape=(last - first, *self.shape[1:]), start=self.start + first * size, stop=self.start + last * size
        )


def read_header(file: Path) -> dict[str, TensorInfo]:
    """What a safetensors file holds, by name, checked against the file's size; reads no tensor.

    Raises:
        CheckpointError: not there, not safetensors, cut short, or a header that contradicts itself.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            if head == b"version ":
                raise CheckpointError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` there")
            if len(head) < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{file} is not a whole safetensors file: {size} bytes, "
                    + (f"its header alone claims {length}" if len(head) == 8 else "not even a header")
                    + "; fetch it again"
                )
            text = stream.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist; fetch it again") from error
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        tensors = {name: _entry(name, file, 8 + length, value) for name, value in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} has a corrupt safetensors header ({error}); fetch it again") from error
    _check_ranges(file, size, 8 + length, tensors.values())
    return tensors


def _entry(name: str, file: Path, base: int, value: Mapping[str, object]) -> TensorInfo:
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if code not in DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {code!r}; known: {', '.join(DTYPES)}")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else []
    if len(numbers) < 2 or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"tensor {name!r} has shape {shape!r} and offsets {offsets!r}")
    start, stop = numbers[-2:]
    info = TensorInfo(name, DTYPES[str(code)], tuple(numbers[:-2]), file, base + start, base + stop)
    if info.nbytes != info.numel * info.dtype.itemsize:
        raise ValueError(f"tensor {name!r} spans {info.nbytes} bytes but is {code} of shape {list(info.shape)}")
    return info


def _check_ranges(file: Path, size: int, base: int, tensors: Iterable[TensorInfo]) -> None:
    end = base
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start != end:
            raise CheckpointError(f"{file} has a corrupt safetensors header (tensor {info.name!r} overlaps or gaps)")
        end = info.stop
    if end > size:
        raise CheckpointError(f"{file} is cut short: {size} bytes of {end} that its header announces; fetch it again")
    if end < size:
        raise CheckpointError(f"{file} has {size - end} bytes after its last tensor: not what its header announces")


def read_tensor(info: TensorInfo, scratch: Tensor | None = None) -> Tensor:
    """One tensor in CPU memory, as stored (dtype and shape of `info`).

    Args:
        info: what to read.
        scratch: uint8 memory of at least `info.nbytes` to read into; the result is a view of it. Its own when left out.

    Raises:
        CheckpointError: the file is shorter than when its header was read.
    """
    flat = empty_huge([info.nbytes], torch.uint8) if scratch is None else scratch[: info.nbytes]
    view = flat.numpy().data
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.start)
        done = 0
        while done < info.nbytes:  # one read() returns at most 2 GiB
            count = stream.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{info.file} became shorter while tensor {info.name!r} was read; fetch it again")
            done += count
    return flat.view(info.dtype).view(info.shape)


class FileWriter:
    """A safetensors file whose tensors are written one by one, in any order; a context manager.

    The data begins at a multiple of ALIGNMENT, so that tensors in the order of `aligned` can be mapped.
    On leaving the block without an error, every tensor has to be written; the file is flushed to the disk then.
    """

    def __init__(self, file: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """
        Args:
            file: overwritten.
            shapes: name -> dtype and shape, in the order in which they lie in the file.
        """
        self._shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets, end = {}, 0
        for name, (dtype, shape) in self._shapes.items():
            offsets[name], end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offsets[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._starts = {name: 8 + len(text) + offset for name, offset in offsets.items()}
        self._stream = file.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, from any device."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._shapes[name], name
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        self._stream.seek(self._starts.pop(name))
        self._stream.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stream as stream:
            if kind is None:
                assert not self._starts, f"not written: {list(self._starts)}"
                stream.flush()
                os.fsync(stream.fileno())


def aligned(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> list[str]:
    """The names in an order in which each tensor's offset is divisible by the power of two that divides its size.

    Powers above ALIGNMENT do not count.
    """

    def granularity(name: str) -> int:
        dtype, shape = shapes[name]
        nbytes = math.prod(shape) * dtype.itemsize
        return min(nbytes & -nbytes, ALIGNMENT) if nbytes else ALIGNMENT

    return sorted(shapes, key=granularity, reverse=True)


def write_file(
    file: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[Tensor]
) -> None:
    """Write a safetensors file; memory used is one tensor.

    Args:
        file: overwritten; flushed to disk before the function returns.
        shapes: name -> dtype and shape, in the order of `tensors`.
        tensors: the values, one at a time, on any device.
    """
    with FileWriter(file, shapes) as writer:
        for name, tensor in zip(shapes, tensors, strict=True):
            writer.write(name, tensor)


def can_map(info: TensorInfo) -> bool:
    """Whether the tensor's offset is aligned to its dtype; files of other programs need not be."""
    return info.nbytes > 0 and info.start % info.dtype.itemsize == 0


class Mappings:
    """Files mapped on first use, each once; a mapping lives as long as one of its tensors."""

    def __init__(self) -> None:
        self._files: dict[Path, mmap.mmap] = {}

    def tensor(self, info: TensorInfo, *, rows: bool = False) -> Tensor:
        """A tensor in the pages of its file.

        Args:
            info: a tensor for which `can_map` is true.
            rows: single rows are read at random; otherwise the system is asked to read all of it ahead.
        """
        assert can_map(info)
        if info.file not in self._files:
            with info.file.open("rb") as stream:
                self._files[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        pages = self._files[info.file]
        self._advise(pages, info, rows)
        flat = torch.frombuffer(pages, dtype=info.dtype, count=info.numel, offset=info.start)
        return flat.view(info.shape)

    def rows(self, old: nn.Embedding, info: TensorInfo) -> nn.Embedding:
        """An embedding of the mapped weight that reads its rows from the file, where the system can."""
        if not hasattr(os, "preadv"):  # not on Windows
            return old
        with info.file.open("rb") as stream:
            return FileEmbedding.over(old, stream.fileno(), info.start)

    def _advise(self, pages: mmap.mmap, info: TensorInfo, rows: bool) -> None:
        if not hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            return
        start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
        pages.madvise(mmap.MADV_RANDOM if rows else mmap.MADV_WILLNEED, start, info.stop - start)
