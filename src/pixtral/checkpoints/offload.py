"""Models over several devices and the disk, with accelerate's hooks: the tensors outside the modules, and the hooks."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from pixtral.checkpoints.memory import gigabytes
from pixtral.checkpoints.placement import Place, Placement, device_of
from pixtral.checkpoints.safetensors_io import TensorInfo, read_header, read_tensor, write_file
from pixtral.errors import CheckpointError, ConfigError, MissingDependency
from pixtral.hub import saving

_log = logging.getLogger("pixtral")


class Offloaded(Mapping[str, Tensor]):
    """Parameter name -> value. Tensors on the disk are read at every access and not cached.

    Tensors that a checkpoint stores as the model uses them are read from there; the others are written once into a
    temporary folder inside `offload_folder`, which is removed with the model.
    """

    def __init__(self, offload_folder: Path | None) -> None:
        self._parent = offload_folder
        self._own: Path | None = None
        self._stored: dict[str, TensorInfo] = {}
        self._held: dict[str, Tensor] = {}
        self._states: dict[Path, tuple[int, int, int]] = {}

    def keep(self, name: str, info: TensorInfo) -> None:
        """Register `name` as a tensor of a file."""
        self._states.setdefault(info.file, _state(info.file))
        self._stored[name] = info

    def hold(self, name: str, value: Tensor) -> None:
        """Register `name` as a tensor in memory, to be moved to another device."""
        self._held[name] = value

    def write(self, name: str, value: Tensor) -> TensorInfo:
        """Write a tensor that no file stores as it is used; returns its place.

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
        """The place of a tensor on the disk; None if it is in memory."""
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


def has_accelerate() -> bool:
    """Whether accelerate is installed."""
    try:
        _accelerate()
    except MissingDependency:
        return False
    return True


def spread(model: nn.Module, strategy: str, limits: Mapping[Place, int], sizes: Mapping[str, torch.dtype]) -> Placement:
    """The placement that a strategy of Transformers gives: GPUs first, then memory, then the disk.

    Args:
        model: on `meta`, with the dtypes that it will have.
        strategy: "auto" and "balanced" fill several GPUs evenly, "balanced_low_0" leaves room on the first,
            "sequential" fills one after another.
        limits: place -> bytes that may be used there; places that are not named are not used.
        sizes: parameter -> the dtype whose width it really takes, where that is not its own.

    Raises:
        MissingDependency: accelerate is not installed.
    """
    accelerate = _accelerate()
    unsplit = sorted({type(one).__name__ for one in model.modules()}.intersection(_no_split_modules(model)))
    most = dict(limits)
    options = {"no_split_module_classes": unsplit, "special_dtypes": dict(sizes)}
    if strategy != "sequential":
        low = strategy == "balanced_low_0"
        most = accelerate.utils.get_balanced_memory(model, max_memory=most, low_zero=low, **options)
    return Placement(dict(accelerate.infer_auto_device_map(model, max_memory=most, **options)))


def attach(model: nn.Module, placement: Placement, offloaded: Offloaded) -> None:
    """Add accelerate's hooks, by which every module fetches its tensors before it computes.

    Args:
        model: filled; what is on the disk, or waits in memory for a GPU, may still be on `meta`.
        placement: of its modules.
        offloaded: the tensors that are not on the device where they are used.

    Raises:
        MissingDependency: accelerate is not installed.
    """
    main = placement.main
    if "disk" in placement.devices.values():
        model.requires_grad_(False)  # autograd would keep every fetched tensor alive
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if main != "cpu" and placement.of(name) == "cpu":
            offloaded.hold(name, parameter.data)
    with _quiet():  # accelerate warns that parameters are on `meta`, which is intended
        devices = {name: _device(place) for name, place in placement.disjoint(model).items()}
        _accelerate().dispatch_model(model, devices, main_device=_device(main), state_dict=offloaded, offload_index={})
    model.offloaded = offloaded  # type: ignore[assignment]
    model.hf_device_map = dict(placement.devices)  # type: ignore[assignment]  # nn.Module takes any attribute
    for module in model.modules():
        if hasattr(module, "main_device"):
            module.main_device = device_of(main)  # type: ignore[assignment]
    _log.info("the model is spread: %s", dict(placement.devices))


def _state(file: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    try:
        found = os.stat(file)
    except OSError as error:
        raise CheckpointError(f"{file}, which a loaded model reads from, is gone ({error}); load it again") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _no_split_modules(model: nn.Module) -> tuple[str, ...]:
    """Classes of residual blocks, which are not split over devices."""
    names: tuple[str, ...] = getattr(model, "_no_split_modules", ())
    return names


def _device(place: Place) -> str | torch.device:
    """As accelerate takes it."""
    return device_of(place) if isinstance(place, int) else place


def _accelerate() -> ModuleType:
    try:
        import accelerate
        import accelerate.utils
    except ImportError as error:
        raise MissingDependency(
            "found no accelerate, which spreads a model over several devices or the disk; install it with "
            "`pip install 'pixtral[offload]'`, or load the model onto one device"
        ) from error
    module: ModuleType = accelerate
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("accelerate.big_modeling")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
