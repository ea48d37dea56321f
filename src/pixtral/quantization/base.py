"""The quantizer interface, so that one loader serves every quantization scheme.

A scheme is a subclass of `Quantizer`. It loads a model in one of two ways, by `stored`:

- `stored=False`: the files hold full-precision weights, and every layer is quantized while they stream;
- `stored=True`: the files hold what an earlier run (or another program) made of them, under names of the scheme's own.

The loader (`checkpoints.load`) uses it in this order, everything before step 4 without reading a tensor:

0. `found(names)`, for stored weights only: the names of all tensors in the files, in the model's spelling, also of
   those that the model lacks.
1. `swap(model, dtype)`: `model` has its parameters on `meta`. The scheme replaces linear layers by modules of its own,
   also on `meta`, and returns them by their name in the model. A bias stays an ordinary parameter named `bias`.
2. `slots(layer)`: the tensors that the files must hold for a layer, by what follows its name and a dot: `weight` when
   the layer is quantized here; `codes`, `scales`, ... or `weight`, `weight.absmax`, ... when it is stored. Missing and
   wrong ones are reported like every other tensor's. `suffixes` lists all that can occur, so that the name tables
   (which know `X.weight`) can follow them.
3. `nbytes(layer)` and `work_bytes(layer)`: bytes of the layer, and bytes beside it while it is quantized.
4. For every layer once, in the order of the files: `quantize(layer, source, device)`, with the weight to be read whole
   or in blocks of rows, already in our row order; or `restore(layer, tensors, device)`, with all its stored tensors.

`maps(name)` says which tensors may be mapped from the file instead of read. For saving, `tensors(layer)` gives what
`restore` takes, and `to_dict()` is `quantization_config` in config.json. `describe(layer)` is for reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

BLOCK_BYTES = 1 << 26  # of full-precision weights in one block


@dataclass(frozen=True)
class Slot:
    """One tensor that the files have to hold.

    Args:
        shape: None for any.
        dtype: None for any floating-point one.
        optional: whether the files may be without it.
    """

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None = None
    optional: bool = False

    def takes(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Whether a tensor of this shape and dtype can fill it."""
        fits = dtype.is_floating_point if self.dtype is None else dtype == self.dtype
        return fits and self.shape in (None, shape)

    def __str__(self) -> str:
        dtype = "" if self.dtype is None else " " + str(self.dtype).removeprefix("torch.")
        return ("any shape" if self.shape is None else str(list(self.shape))) + dtype


class WeightSource(Protocol):
    """A full-precision (N, K) weight that can be read in parts; its dtype is the file's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> Tensor:
        """All of it, in CPU memory of its own."""
        ...

    def blocks(self, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows (n, K)) from the top, about BLOCK_BYTES each; a block is valid until the next is requested.

        Args:
            multiple: n is a multiple of it, except in the last block.
        """
        ...


def block_rows(row_bytes: int, multiple: int) -> int:
    """Rows of one block: a multiple of `multiple`, about BLOCK_BYTES together."""
    return max(BLOCK_BYTES // max(row_bytes, 1) // multiple, 1) * multiple


class Quantizer(ABC):
    """A quantization scheme; see the module's docstring.

    Attributes:
        method: `quant_method` in config.json.
        suffixes: what follows a layer's name and a dot in the names of all its stored tensors.
        stored: whether the files hold quantized tensors already.
        names: of the layers that `swap` replaced; set by the loader.
        offloaded: modules that device_map puts on the CPU or the disk; set by the loader before `swap`.
    """

    method: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, *, stored: bool) -> None:
        self.stored = stored
        self.names: tuple[str, ...] = ()
        self.offloaded: tuple[str, ...] = ()

    @property
    @abstractmethod
    def config(self) -> object:
        """The public configuration object; `model.quantization_config`."""

    def found(self, names: Collection[str]) -> None:
        """Receive the names of a stored model's tensors; most schemes need only the configuration."""
        return

    @abstractmethod
    def swap(self, model: nn.Module, dtype: torch.dtype) -> dict[str, nn.Module]:
        """Replace linear layers of a model on `meta`; the new modules (on `meta` too) by their names.

        Args:
            model: one of the three networks, or a subclass.
            dtype: what the rest of the model computes in.

        Raises:
            ConfigError: a layer that the scheme cannot quantize.
        """

    @abstractmethod
    def slots(self, layer: nn.Module) -> dict[str, Slot]:
        """The tensors that the files must hold for a swapped layer, by suffix; without its bias."""

    @abstractmethod
    def nbytes(self, layer: nn.Module) -> int:
        """Bytes that a swapped layer takes when it is filled, without its bias."""

    def work_bytes(self, layer: nn.Module) -> int:
        """Bytes beside the layer while it is quantized or restored, without the block that is read."""
        return 0

    @abstractmethod
    def quantize(self, layer: nn.Module, source: WeightSource, device: torch.device) -> None:
        """Fill a swapped layer from a full-precision weight."""

    @abstractmethod
    def restore(self, layer: nn.Module, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Fill a swapped layer from its stored tensors, by suffix; they are on the CPU, and the layer may keep them."""

    @abstractmethod
    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        """What has to be stored of a filled layer, by suffix; without its bias."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """`quantization_config` of config.json, `quant_method` included."""

    @abstractmethod
    def describe(self, layer: nn.Module) -> str:
        """The format of a swapped layer's weights: "4 bits, groups of 64"."""

    def maps(self, name: str) -> bool:
        """Whether a tensor of the model (by its name there) may be mapped read-only instead of read into memory."""
        return False


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in the place of the one called `name`."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, new)
