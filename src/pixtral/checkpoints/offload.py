"""Tensors of a model that do not lie in its modules: read from a file, or lent, whenever a module computes."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pixtral.checkpoints.memory import gigabytes
from pixtral.checkpoints.tensors import TensorInfo, read_header, read_tensor, write_file
from pixtral.errors import CheckpointError, ConfigError
from pixtral.hub import saving


class Offloaded(Mapping[str, Tensor]):
    """Parameter name -> value. What lies on the disk is read anew each time and never kept.

    Tensors that a checkpoint stores as the model uses them are read from there; the others are written once into a
    folder of our own inside `offload_folder`, which goes when the model does.
    """

    def __init__(self, offload_folder: Path | None) -> None:
        self._parent = offload_folder
        self._own: Path | None = None
        self._stored: dict[str, TensorInfo] = {}
        self._held: dict[str, Tensor] = {}
        self._states: dict[Path, tuple[int, int, int]] = {}

    def keep(self, name: str, info: TensorInfo) -> None:
        """`name` is a tensor of a file, as it lies there."""
        self._states.setdefault(info.file, _state(info.file))
        self._stored[name] = info

    def hold(self, name: str, value: Tensor) -> None:
        """`name` waits in memory, to be brought to another device."""
        self._held[name] = value

    def write(self, name: str, value: Tensor) -> TensorInfo:
        """Where a tensor lies now that no file held as it is used.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        if self._own is None:
            self._own = self._make_folder()
        with saving(self._own) as folder:
            file = folder / f"{name}.safetensors"
            write_file(file, {name: (value.dtype, value.shape)}, [value])
        return read_header(file)[name]

    def info(self, name: str) -> TensorInfo | None:
        """Where a tensor lies on the disk; None when it waits in memory."""
        return self._stored.get(name)

    def check_room(self, nbytes: int) -> None:
        """Refuse to write `nbytes` in all when they have nowhere to go.

        Raises:
            ConfigError: there is no offload_folder.
            CheckpointError: it cannot be made, or its disk is too full.
        """
        if not nbytes:
            return
        if self._parent is None:
            raise ConfigError(
                f"device_map keeps {gigabytes(nbytes)} on the disk that the checkpoint does not store as the model "
                "uses them (another dtype, or Mistral's row order); say where they may be written: offload_folder=..."
            )
        with saving(self._parent) as folder:
            free = shutil.disk_usage(folder).free
        if free < nbytes:
            raise CheckpointError(
                f"offload_folder {self._parent} has {gigabytes(free)} free, but {gigabytes(nbytes)} are to be written "
                "there; make room, or name a folder on another disk"
            )

    def _make_folder(self) -> Path:
        assert self._parent is not None, "check_room comes first"
        with saving(self._parent) as parent:
            own = Path(tempfile.mkdtemp(prefix="pixtral-", dir=parent))
        weakref.finalize(self, shutil.rmtree, own, ignore_errors=True)
        return own

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name]
        info = self._stored[name]
        if _state(info.file) != self._states[info.file]:
            raise CheckpointError(
                f"{info.file} was changed after the model was loaded, which reads {name!r} there; load the model again"
            )
        return read_tensor(info)

    def __iter__(self) -> Iterator[str]:
        yield from self._held
        yield from self._stored

    def __len__(self) -> int:
        return len(self._held) + len(self._stored)


def _state(file: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    try:
        found = os.stat(file)
    except OSError as error:
        raise CheckpointError(f"{file}, which a loaded model reads from, is gone ({error}); load it again") from error
    return found.st_ino, found.st_size, found.st_mtime_ns
