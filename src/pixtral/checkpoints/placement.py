"""What a caller says about a model's dtype and device, turned into PyTorch's objects or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

from pixtral.errors import ConfigError

DeviceMap: TypeAlias = str | int | torch.device | Mapping[str, str | int | torch.device] | None

COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


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


def parse_device(device_map: DeviceMap) -> torch.device:
    """The one device that a model goes to.

    Raises:
        ConfigError: several devices, a device that is not there, or not a device.
    """
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise ConfigError(
                f"device_map {dict(device_map)!r} spreads the model; one device is supported: "
                "'auto', 'cpu', 'cuda', a torch.device, or {'': device}"
            )
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device("cuda", device_map) if isinstance(device_map, int) else torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device_map is {device_map!r}; expected None, 'auto', 'cpu', 'cuda', a torch.device, or {{'': device}}"
        ) from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ConfigError(f"device_map asks for {device}, which is not available here; use 'auto' or 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device_map asks for {device}, but there are {torch.cuda.device_count()} CUDA devices")
    return device
