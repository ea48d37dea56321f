"""pixtral's int4 and int8, in groups of weights that share a scale: which layers, how many bits, and filling them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pixtral.configuration.quantization import QuantizationConfig
from pixtral.errors import ConfigError
from pixtral.layers.linear import QuantizedLinear
from pixtral.ops.quantized_weight import SEARCH_CHUNK, TILE, choose_group_size, quantize_weight, quantized_shapes
from pixtral.ops.runtime import empty_huge
from pixtral.quantization.base import BLOCK_BYTES, Quantizer, Slot, WeightSource, replace_module

VISION_BITS = 8
GROUP_SIZES: tuple[int, ...] = (64, 32)  # the first that divides a width is taken
VISION_GROUP_SIZES: tuple[int, ...] = (128, 64, 32)  # larger, since scales cost time for each of an image's many rows
_PARTS = ("codes", "scales", "row_scales")


class GroupwiseQuantizer(Quantizer):
    """Quantizes to the format of `ops.quantized_weight`.

    The decoder's projections get `bits`, the output layer `lm_head_bits`; tower and projector stay in full precision
    unless `quantize_vision`. An output layer that is tied to the embeddings becomes a quantized copy of them, and the
    embeddings stay: a token reads one row of them, but the whole output layer.
    """

    method: ClassVar[str] = QuantizationConfig.method
    suffixes: ClassVar[tuple[str, ...]] = _PARTS

    def __init__(self, config: QuantizationConfig, *, stored: bool = False) -> None:
        super().__init__(stored=stored)
        self._config = config

    @property
    def config(self) -> QuantizationConfig:
        """The caller's, or the checkpoint's."""
        return self._config

    def swap(self, model: nn.Module, dtype: torch.dtype) -> dict[str, nn.Module]:
        """See Quantizer.swap.

        Raises:
            ConfigError: a width that no group divides, or nothing to quantize in this network.
        """
        swapped: dict[str, nn.Module] = {}
        for name, (bits, sizes) in self._chosen(model).items():
            old = model.get_submodule(name)
            assert isinstance(old, nn.Linear)
            with torch.device("meta"):
                new = QuantizedLinear(
                    old.in_features,
                    old.out_features,
                    bits=bits,
                    group_size=self._group_size(name, old.in_features, sizes),
                    activations=self._config.activations,
                )
            new.bias = old.bias
            replace_module(model, name, new)
            swapped[name] = new
        if not swapped and not self.stored:
            raise ConfigError(
                f"quantization={self._config.name!r} is for a decoder, and {type(model).__name__} has none; "
                "pass quantize_vision=True for the vision tower, or load it as it is"
            )
        return swapped

    def slots(self, layer: nn.Module) -> dict[str, Slot]:
        """The full-precision weight, or the three quantized tensors."""
        assert isinstance(layer, QuantizedLinear)
        if not self.stored:
            return {"weight": Slot((layer.out_features, layer.in_features))}
        return {name: Slot(shape, dtype) for name, (dtype, shape) in _shapes(layer).items()}

    def nbytes(self, layer: nn.Module) -> int:
        """See Quantizer.nbytes."""
        assert isinstance(layer, QuantizedLinear)
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in _shapes(layer).values())

    def work_bytes(self, layer: nn.Module) -> int:
        """The search for scales without the native kernels: 24 bytes for each weight of a chunk (measured), and
        3 for each of the block: codes before and after they are packed into bytes.
        """
        assert isinstance(layer, QuantizedLinear)
        weights = layer.in_features * layer.out_features
        return 24 * min(weights, SEARCH_CHUNK) + 3 * min(weights, BLOCK_BYTES // 2)

    def quantize(self, layer: nn.Module, source: WeightSource, device: torch.device) -> None:
        """Quantize block after block, so that a large weight is never held twice."""
        assert isinstance(layer, QuantizedLinear)
        whole = {name: empty_huge(shape, dtype) for name, (dtype, shape) in _shapes(layer).items()}
        for start, rows in source.blocks(TILE):
            part = quantize_weight(rows, layer.bits, layer.group_size)
            tiles = slice(start // TILE, start // TILE + len(part.codes))
            whole["codes"][tiles] = part.codes
            whole["scales"][tiles] = part.scales
            whole["row_scales"][start : start + len(part.row_scales)] = part.row_scales
        self.restore(layer, whole, device)

    def restore(self, layer: nn.Module, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """See Quantizer.restore."""
        for name in _PARTS:
            setattr(layer, name, tensors[name].to(device))

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        """See Quantizer.tensors."""
        return {name: getattr(layer, name) for name in _PARTS}

    def to_dict(self) -> dict[str, Any]:
        """See QuantizationConfig.to_dict."""
        return self._config.to_dict()

    def describe(self, layer: nn.Module) -> str:
        """See Quantizer.describe."""
        assert isinstance(layer, QuantizedLinear)
        return f"{layer.bits} bits, groups of {layer.group_size}"

    def maps(self, name: str) -> bool:
        """All tensors of a stored model; else the embeddings, of which a token reads one row."""
        return self.stored or name.endswith("embed_tokens.weight")

    def _chosen(self, model: nn.Module) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Name of a linear layer -> its bits, and the group sizes to try."""
        config = self._config
        chosen: dict[str, tuple[int, tuple[int, ...]]] = {}
        for path, module in model.named_modules():
            part = getattr(module, "quantized_as", None)  # what the classes of `models` say of themselves
            if part == "decoder":
                choice = config.bits, GROUP_SIZES
            elif part == "vision" and config.quantize_vision:
                choice = VISION_BITS, VISION_GROUP_SIZES
            else:
                continue
            prefix = path + "." if path else ""
            chosen |= {prefix + name: choice for name, one in module.named_modules() if isinstance(one, nn.Linear)}
        if config.lm_head_bits < 16 and isinstance(getattr(model, "lm_head", None), nn.Linear):
            chosen["lm_head"] = config.lm_head_bits, GROUP_SIZES
        return chosen

    def _group_size(self, name: str, width: int, sizes: tuple[int, ...]) -> int:
        wanted = self._config.group_size
        size = choose_group_size(width, sizes) if wanted is None else wanted
        if size is None or width % size:
            raise ConfigError(
                f"{name} has {width} columns, which groups of {size or '64 or 32'} do not divide; "
                + ("leave the model as it is" if wanted is None else "leave group_size out, or choose one that does")
            )
        return size


def _shapes(layer: QuantizedLinear) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return quantized_shapes(layer.bits, layer.group_size, layer.out_features, layer.in_features)
