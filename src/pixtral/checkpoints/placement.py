"""The arguments dtype, device_map, max_memory and offload_folder, parsed; and the placement of a model's modules."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from pixtral.checkpoints.memory import parse_bytes
from pixtral.checkpoints.names import tied_groups
from pixtral.errors import ConfigError, nearest

Device: TypeAlias = str | int | torch.device
DeviceMap: TypeAlias = Device | Mapping[str, Device] | None
MaxMemory: TypeAlias = Mapping[int | str, int | str] | None
# As accelerate and `hf_device_map` write a device: "cpu", "disk", "mps", or the number of a GPU.
Place: TypeAlias = str | int

COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype to compute in; None for "auto".

    Raises:
        ConfigError: not a floating-point dtype that PyTorch computes in.
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in COMPUTE_DTYPES:
        known = ", ".join(str(one).removeprefix("torch.") for one in COMPUTE_DTYPES)
        raise ConfigError(f"dtype is {dtype!r}; expected 'auto' or one of {known}")
    return found


def parse_device(device_map: Device) -> torch.device:
    """One device that is there.

    Raises:
        ConfigError: a device that is not there, or not a device.
    """
    try:
        device = torch.device("cuda", device_map) if isinstance(device_map, int) else torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device_map is {device_map!r}; expected None, {', '.join(map(repr, STRATEGIES))}, 'cpu', 'cuda', a "
            "torch.device, or a dict of module names to devices"
        ) from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ConfigError(f"device_map asks for {device}, which is not available here; use 'auto' or 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device_map asks for {device}, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def best_device() -> torch.device:
    """The one device that is likely the fastest."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(best)


def place_of(device: torch.device) -> Place:
    """A device as `hf_device_map` writes it."""
    if device.type == "cuda":
        return torch.cuda.current_device() if device.index is None else device.index
    return device.type


def device_of(place: Place) -> torch.device:
    """The device that a place other than the disk stands for."""
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


@dataclass(frozen=True)
class PlacementOptions:
    """The parsed arguments about places, independent of a model.

    Attributes:
        strategy: one of `STRATEGIES`; None when `devices` says it.
        devices: module -> place, "" being the whole model.
        max_memory: place -> bytes that a strategy may use there; None for what is free.
        offload_folder: for what is kept on the disk and does not lie in the checkpoint as it is used.
    """

    strategy: str | None
    devices: Mapping[str, Place]
    max_memory: Mapping[Place, int] | None = None
    offload_folder: Path | None = None


def parse_placement_options(
    device_map: DeviceMap, max_memory: MaxMemory = None, offload_folder: str | os.PathLike[str] | None = None
) -> PlacementOptions:
    """The arguments `device_map`, `max_memory` and `offload_folder`, checked as far as they can be without a model.

    Raises:
        ConfigError: a device that is not there, not a device, not a size, or a limit without a strategy.
    """
    folder = None if offload_folder is None else Path(offload_folder).expanduser()
    limits = None if max_memory is None else _limits(max_memory)
    if isinstance(device_map, str) and device_map in STRATEGIES:
        return PlacementOptions(device_map, {}, limits, folder)
    if limits is not None:
        raise ConfigError(
            f"max_memory limits what a strategy may use, but device_map is {device_map!r}; "
            f"set device_map to one of {', '.join(map(repr, STRATEGIES))}, or leave max_memory out"
        )
    if not isinstance(device_map, Mapping):
        return PlacementOptions(
            None, {"": place_of(parse_device("cpu" if device_map is None else device_map))}, None, folder
        )
    devices = {name: _place(device) for name, device in device_map.items()}
    if not devices:
        raise ConfigError("device_map is an empty dict; expected module names and devices, for example {'': 'cpu'}")
    return PlacementOptions(None, devices, None, folder)


@dataclass(frozen=True)
class Placement:
    """Where each tensor of a model goes.

    Attributes:
        devices: module -> place, "" being the whole model; every tensor lies in one of the modules.
    """

    devices: Mapping[str, Place]

    def of(self, name: str) -> Place:
        """The place of a parameter, buffer or module, by the longest module name that holds it."""
        return next(self.devices[one] for one in _enclosing(name) if one in self.devices)

    @property
    def spread(self) -> bool:
        """Whether the model lies in several places, or not in memory, so that modules have to fetch what they need."""
        return len(set(self.devices.values())) > 1 or "disk" in self.devices.values()

    def disjoint(self, model: nn.Module) -> dict[str, Place]:
        """The same as a map in which no module lies inside of another that is named."""
        flat: dict[str, Place] = {}

        def cover(name: str, module: nn.Module) -> None:
            prefix = f"{name}." if name else ""
            if any(one != name and one.startswith(prefix) for one in self.devices):
                for child, inner in module.named_children():
                    cover(prefix + child, inner)
            elif next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
                flat[name] = self.of(name)

        cover("", model)
        return flat

    @property
    def main(self) -> Place:
        """Where inputs go, and where modules that lie elsewhere in memory or on the disk compute."""
        return next((place for place in self.devices.values() if place not in ("cpu", "disk")), "cpu")


def explicit(model: nn.Module, devices: Mapping[str, Place]) -> Placement:
    """The placement by an explicit device_map.

    Raises:
        ConfigError: a name that is no module, or a parameter that no name covers.
    """
    modules = {name for name, _ in model.named_modules()}
    for name in devices:
        if name not in modules:
            blocks = [one for one in modules if one and one.count(".") < 3]
            raise ConfigError(f"device_map names a module {name!r} that the model has not; {nearest(name, blocks)}")
    tensors = [name for name, _ in _tensors(model)]
    left = [name for name in tensors if not any(one in devices for one in _enclosing(name))]
    if left:
        raise ConfigError(
            f"device_map says nothing about {len(left)} parameters ({', '.join(left[:3])}, ...); "
            "name their modules too, or say {'': device} for all the rest"
        )
    return _together(model, dict(devices))


def _together(model: nn.Module, devices: dict[str, Place]) -> Placement:
    """A tensor that two modules share stays in memory for both if one of them has it there."""
    placement = Placement(devices)
    for name, group in tied_groups(model).items():
        memory = [place for place in map(placement.of, group) if place != "disk"]
        if memory and placement.of(name) == "disk":
            devices[name.rpartition(".")[0]] = memory[0]
    return placement


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _enclosing(tensor: str) -> Iterator[str]:
    """The tensor or module itself and what holds it, the innermost first, and "" last."""
    name = tensor
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name


def _place(device: Device) -> Place:
    return "disk" if device == "disk" else place_of(parse_device(device))


def _limits(max_memory: Mapping[int | str, int | str]) -> dict[Place, int]:
    """max_memory with sizes in bytes and keys as in `hf_device_map`, GPUs first.

    A place that is not named is not used, as in Transformers.
    """
    limits: dict[Place, int] = {}
    for key, size in max_memory.items():
        if isinstance(key, str) and key.isdigit():
            key = int(key)
        if key == "disk":
            continue  # the disk takes what is left, whatever it is
        if not isinstance(key, int) and key not in ("cpu", "mps"):
            raise ConfigError(f"max_memory limits {key!r}; expected the number of a GPU, 'cpu' or 'mps'")
        limits[place_of(parse_device(key))] = parse_bytes(size, f"max_memory[{key!r}]")
    if not limits:
        raise ConfigError("max_memory names no device; expected for example {0: '10GiB', 'cpu': '30GiB'}")
    return dict(sorted(limits.items(), key=lambda item: (not isinstance(item[0], int), str(item[0]))))
