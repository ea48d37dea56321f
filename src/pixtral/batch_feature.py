"""BatchFeature, the result of processors and tokenizers: a mapping whose entries are also attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from pixtral.errors import ConfigError, PromptError, UnknownArgument

if TYPE_CHECKING:
    import torch

_TENSOR_TYPES = ("pt", "np")


class BatchFeature(MutableMapping[str, Any]):
    """A mapping from names to values (tensors, arrays, lists) with attribute access.

    `batch["pixel_values"]` and `batch.pixel_values` are the same; `model(**batch)` works; it can be pickled.

    Args:
        data: the entries.
        tensor_type: "pt" turns every entry into a torch tensor, "np" into a NumPy array, None leaves them.
            Strings are left alone.

    Raises:
        PromptError: the parts of an entry have different sizes.
        ConfigError: another tensor_type.
    """

    data: dict[str, Any]

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        self.__dict__["data"] = dict(data or {})
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, key: str) -> Any:
        if not isinstance(key, str):
            raise KeyError(f"entries are looked up by name, got {key!r}; the names are: {', '.join(self.data)}")
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})  # absent while an instance is being unpickled or copied
        if name in data:
            return data[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it holds: {', '.join(data) or 'nothing'}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self.__dict__["data"] = dict(value)
        elif hasattr(type(self), name):
            raise AttributeError(f"{name!r} is a method of {type(self).__name__}; write batch[{name!r}] = ... instead")
        else:
            self.data[name] = value

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__["data"] = dict(state["data"])

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.data})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.data!r})"

    def copy(self) -> BatchFeature:
        """A shallow copy."""
        return type(self)(self.data)

    def convert_to_tensors(self, tensor_type: str | None) -> BatchFeature:
        """Turn every entry into tensors ("pt") or arrays ("np"), in place; None does nothing."""
        if tensor_type is None:
            return self
        if tensor_type not in _TENSOR_TYPES:
            raise ConfigError(f"return_tensors is {tensor_type!r}; expected 'pt', 'np' or None")
        for key, value in self.data.items():
            self.data[key] = _convert(value, tensor_type, key)
        return self

    def to(self, *args: object, **kwargs: object) -> BatchFeature:
        """Move tensors to a device and cast the floating ones to a dtype, in place; returns itself.

        `to("cuda")`, `to(torch.bfloat16)`, `to("cuda", torch.bfloat16)`, `to("cpu", dtype=torch.float16)`. Tensors
        inside lists and tuples follow. Integer and boolean tensors keep their dtype; everything else is left alone.

        Args:
            args: a device (str, int or torch.device), a torch.dtype, or both.
            kwargs: `device`, `dtype`, `non_blocking`.
        """
        device, dtype, non_blocking = _destination(args, dict(kwargs))
        for key, value in self.data.items():
            self.data[key] = _move(value, device, dtype, non_blocking)
        return self


BatchEncoding = BatchFeature


def _convert(value: Any, tensor_type: str, key: str) -> Any:
    """One entry as a tensor or an array."""
    import numpy as np

    if value is None or isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        return value
    is_list = isinstance(value, (list, tuple))
    if tensor_type == "np":
        if is_list and value and hasattr(value[0], "detach"):
            value = [item.detach().cpu().numpy() for item in value]
        elif hasattr(value, "detach"):
            value = value.detach().cpu()
        try:
            return np.asarray(value)
        except ValueError as error:
            raise _ragged(key) from error
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if is_list and value and isinstance(value[0], torch.Tensor):
        if len({item.shape for item in value}) > 1:
            raise _ragged(key)
        return torch.stack(list(value))
    if is_list and value and isinstance(value[0], np.ndarray):
        if len({item.shape for item in value}) > 1:
            raise _ragged(key)
        return torch.from_numpy(np.stack(value))
    try:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.tensor(value)
    except (ValueError, TypeError) as error:
        raise _ragged(key) from error


def _ragged(key: str) -> PromptError:
    return PromptError(
        f"{key!r} cannot become one tensor because its parts have different sizes; "
        "pad them (padding=True for text, do_pad=True for images) or leave return_tensors out"
    )


def _destination(
    args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[torch.device | None, torch.dtype | None, bool]:
    """(device, dtype, non_blocking) from the arguments of `.to`."""
    import torch

    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    non_blocking = bool(kwargs.pop("non_blocking", False))
    for name in kwargs:
        raise UnknownArgument(f"to() got an unknown argument {name!r}; it takes device, dtype and non_blocking")
    for arg in args:
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, (str, int, torch.device)):
            device = arg
        elif arg is not None:
            raise UnknownArgument(f"to() got {arg!r}; expected a device ('cpu', 0, torch.device) or a torch.dtype")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UnknownArgument(f"to() got dtype={dtype!r}; expected a torch.dtype such as torch.bfloat16")
    if device is not None and not isinstance(device, (str, int, torch.device)):
        raise UnknownArgument(f"to() got device={device!r}; expected a device such as 'cpu', 0 or torch.device('cuda')")
    return None if device is None else torch.device(device), dtype, non_blocking


def _move(value: Any, device: torch.device | None, dtype: torch.dtype | None, non_blocking: bool) -> Any:
    """One entry on the device, cast when it is floating."""
    import torch

    if isinstance(value, torch.Tensor):
        cast = dtype if dtype is not None and value.is_floating_point() else value.dtype
        return value.to(device=device if device is not None else value.device, dtype=cast, non_blocking=non_blocking)
    if isinstance(value, (list, tuple)):
        moved = [_move(item, device, dtype, non_blocking) for item in value]
        if isinstance(value, list):
            return moved
        return tuple(moved) if type(value) is tuple else value
    return value
