"""A network without memory: built on the `meta` device, with first weights left out since they will be replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pixtral.configuration import Config

M = TypeVar("M", bound=nn.Module)


class _NoFirstWeights(TorchFunctionMode):
    """Turns the functions of torch.nn.init into nothing.

    On `meta` they would compute nothing either, but PyTorch's stand-ins for them import its compiler: over a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_empty(cls: type[M], config: Config) -> M:
    """`cls(config)` with every parameter on `meta`: shapes and dtypes, no values."""
    with torch.device("meta"), _NoFirstWeights():
        return cls(config)
