"""bitsandbytes' two linear layers, quantized piece by piece while a checkpoint streams, and savable at any time.

The library's kernels compute. Three bugs of its CPU path are worked around (found in 0.50):

- its fast path for bfloat16 CPUs rearranges a weight in the first call and rounds the scales to bfloat16. A state_dict
  taken after that has scales in the wrong order and breaks the layer itself, and the layer cannot be moved to a GPU.
- that path fails for a number of rows that 32 does not divide, and for a width that the blocks of scales do not divide.
- in the latter case its other path gives wrong numbers.

This module imports the library; `bitsandbytes.py` imports it on first use.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixtral.configuration import BitsAndBytesConfig
from pixtral.errors import CheckpointError
from pixtral.quantization.base import Slot, WeightSource

PIECE = 1 << 20  # weights that are quantized at a time; doing so takes about 24 bytes for each of them
WORK_BYTES = 24 * PIECE
BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share a scale
_CPU_TILE = 32  # rows that the CPU's fast path takes together


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]  # the library has no types
    """The library's 4-bit layer."""

    in_features: int
    out_features: int
    weight: Any

    def __init__(self, linear: nn.Linear, config: BitsAndBytesConfig) -> None:
        super().__init__(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            config.bnb_4bit_compute_dtype,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            quant_storage=config.bnb_4bit_quant_storage,
        )
        self.requires_grad_(False)
        self._exact: bnb.functional.QuantState | None = None

    def reset_parameters(self) -> None:
        """Nothing: the layer is filled later."""

    def slots(self, stored: bool) -> dict[str, Slot]:
        """What the files have to hold."""
        rows, columns = self.out_features, self.in_features
        if not stored:
            return {"weight": Slot((rows, columns))}
        weight, blocks = self.weight, math.ceil(rows * columns / BLOCK)
        nested = weight.compress_statistics
        slots = {
            "weight": Slot((math.ceil(rows * columns / 2) // weight.quant_storage.itemsize, 1), weight.quant_storage),
            "weight.absmax": Slot((blocks,), torch.uint8 if nested else torch.float32),
            "weight.quant_map": Slot((16,), torch.float32),
            f"weight.quant_state.bitsandbytes__{weight.quant_type}": Slot(None, torch.uint8),
        }
        if nested:
            slots["weight.nested_absmax"] = Slot((math.ceil(blocks / NESTED_BLOCK),), torch.float32)
            slots["weight.nested_quant_map"] = Slot((256,), torch.float32)
        return slots

    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        count = self.out_features * self.in_features
        blocks = math.ceil(count / BLOCK)
        scales = blocks + math.ceil(blocks / NESTED_BLOCK) * 4 if self.weight.compress_statistics else 4 * blocks
        return math.ceil(count / 2) + scales

    def quantize(self, source: WeightSource, device: torch.device, dtype: torch.dtype) -> None:
        """Fill from a weight, rounded to `dtype` first."""
        old = self.weight
        codes, state = _quantize_4bit(source, device, dtype, old.quant_type, old.compress_statistics)
        self.weight = bnb.nn.Params4bit(
            codes.view(old.quant_storage)[:, None],
            requires_grad=False,
            quant_state=state,
            blocksize=BLOCK,
            compress_statistics=old.compress_statistics,
            quant_type=old.quant_type,
            quant_storage=old.quant_storage,
            module=self,
            bnb_quantized=True,
        )
        self.quant_state = state
        self._remember()

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """From what the library's state_dict holds."""
        stored = dict(tensors)
        weight = stored.pop("weight")
        try:
            self.weight = bnb.nn.Params4bit.from_prequantized(
                weight, stored, requires_grad=False, device=device, module=self
            )
        except (ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
            raise CheckpointError(
                f"found a 4-bit weight whose quant_state cannot be read ({error!r}); fetch the checkpoint again"
            ) from error
        state = self.weight.quant_state
        shape = (self.out_features, self.in_features)
        if state.shape != shape or state.blocksize * state.absmax.numel() < math.prod(shape):
            raise CheckpointError(
                f"found the quant_state of a 4-bit weight {list(state.shape)} with {state.absmax.numel()} scales for "
                f"{state.blocksize} weights each, expected one of {list(shape)}; fetch the checkpoint again"
            )
        self._remember()

    def tensors(self) -> dict[str, Tensor]:
        """What the library's state_dict would hold of a layer that was never called."""
        self.undo_cpu_layout()
        state = self.weight.quant_state.as_dict(packed=True)
        return {"weight": self.weight.data, **{f"weight.{name}": value for name, value in state.items()}}

    def describe(self) -> str:
        """See Quantizer.describe."""
        double = ", double quantization" if self.weight.compress_statistics else ""
        return f"4 bits ({self.weight.quant_type}{double}), bitsandbytes"

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        if self._has_cpu_layout and (self.training or x.requires_grad):
            self.undo_cpu_layout()  # the fast path has no gradients
        if x.device.type == "cpu" and not self._fits_cpu:
            weight = self._dequantized(self.compute_dtype)
            bias = None if self.bias is None else self.bias.to(weight.dtype)
            return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
        kept = None if self.bias is None else self.bias.data
        out: Tensor = super().forward(x)
        if kept is not None:
            self.bias.data = kept  # the library rounds it to the compute dtype permanently
        return out

    def undo_cpu_layout(self) -> None:
        """Undo the rearrangement of the weight by the CPU's fast path; the next call repeats it."""
        if not self._has_cpu_layout:
            return
        state = self.weight.quant_state
        # the library's inverse is right for the weights only, and changes the state that it is given
        data, _ = bnb.functional._convert_weight_packed_for_cpu_inverse(self.weight.data, copy.copy(state))
        exact = self._exact
        if exact is None:
            exact = bnb.functional.QuantState(
                state.absmax.T.reshape(-1).float(),
                state.shape,
                state.code,
                state.blocksize,
                state.quant_type,
                state.original_dtype,
            )
        self.weight.data = data
        self.weight.quant_state = self.quant_state = copy.copy(exact)

    @property
    def _has_cpu_layout(self) -> bool:
        return bool(getattr(self.weight.quant_state, "packing_format_for_cpu", False))

    @property
    def _fits_cpu(self) -> bool:
        return self.in_features % int(self.weight.quant_state.blocksize) == 0 and self.out_features % _CPU_TILE == 0

    def _remember(self) -> None:
        """Keep the scales if the fast path's rounding to bfloat16 changes them; 1 to 4 bytes for 64 weights."""
        state = self.weight.quant_state
        exact = not state.nested and torch.equal(state.absmax.bfloat16().float(), state.absmax)
        self._exact = None if exact else copy.copy(state)

    def _dequantized(self, dtype: torch.dtype) -> Tensor:
        """(N, K), dequantized as one long row, since the library is wrong where blocks cross rows."""
        state = copy.copy(self.weight.quant_state)
        shape, state.shape, state.dtype = state.shape, torch.Size((1, math.prod(state.shape))), dtype
        weight: Tensor = bnb.functional.dequantize_4bit(self.weight.data, state)
        return weight.view(shape)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.undo_cpu_layout()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Linear4bit:
        if self.weight.quant_state is None:
            return super()._apply(fn, recurse)  # type: ignore[no-any-return]
        self.undo_cpu_layout()
        super()._apply(fn, recurse)
        self._remember()
        return self


class Linear8bitLt(bnb.nn.Linear8bitLt):  # type: ignore[misc]  # the library has no types
    """The library's 8-bit layer."""

    in_features: int
    out_features: int
    weight: Any

    def __init__(self, linear: nn.Linear, config: BitsAndBytesConfig) -> None:
        super().__init__(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            has_fp16_weights=config.llm_int8_has_fp16_weight,
            threshold=config.llm_int8_threshold,
        )
        self.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Nothing: the layer is filled later."""

    def slots(self, stored: bool) -> dict[str, Slot]:
        """What the files have to hold."""
        shape = (self.out_features, self.in_features)
        if not stored or self.state.has_fp16_weights:
            return {"weight": Slot(shape)}
        return {
            "weight": Slot(shape, torch.int8),
            "SCB": Slot(shape[:1], torch.float32),
            "weight_format": Slot((), torch.uint8, optional=True),
        }

    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        count = self.out_features * self.in_features
        return 2 * count if self.state.has_fp16_weights else count + 4 * self.out_features

    def quantize(self, source: WeightSource, device: torch.device, dtype: torch.dtype) -> None:
        """Fill from a weight, rounded to `dtype` first."""
        if self.state.has_fp16_weights:
            self._fill(source.read().to(device, dtype), None)
        else:
            self._fill(*_quantize_8bit(source, device, dtype))

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """From what the library's state_dict holds."""
        kind = tensors.get("weight_format")
        if kind is not None and int(kind) != 0:
            raise CheckpointError(
                f"found 8-bit weights in bitsandbytes' order number {int(kind)}, expected 0, by rows; "
                "save them with bitsandbytes 0.46 or newer"
            )
        scales = tensors.get("SCB")
        self._fill(tensors["weight"].to(device), None if scales is None else scales.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """What the library's state_dict holds."""
        if self.state.has_fp16_weights:
            return {"weight": self.weight.data}
        scales = self.state.SCB if self.weight.SCB is None else self.weight.SCB
        return {"weight": self.weight.data, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def describe(self) -> str:
        """See Quantizer.describe."""
        return "16 bits, 8 in use, bitsandbytes" if self.state.has_fp16_weights else "8 bits, bitsandbytes"

    def _fill(self, weight: Tensor, scales: Tensor | None) -> None:
        self.weight = bnb.nn.Int8Params(
            weight,
            requires_grad=False,
            has_fp16_weights=self.state.has_fp16_weights,
            CB=None if scales is None else weight,
            SCB=scales,
        )


def _quantize_4bit(
    source: WeightSource, device: torch.device, dtype: torch.dtype, quant_type: str, double: bool
) -> tuple[Tensor, Any]:
    """What the library's quantize_4bit makes of the whole weight in `dtype`, with little memory beside it.

    Args:
        source: of the weight (N, K).
        device: where the result goes.
        dtype: what the weight is rounded to first.
        quant_type: "nf4" or "fp4".
        double: quantize the scales too.

    Returns:
        (N * K / 2,) uint8, and the library's QuantState.
    """
    rows, columns = source.shape
    codes = torch.empty(math.ceil(rows * columns / 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(math.ceil(rows * columns / BLOCK), dtype=torch.float32, device=device)
    code = None
    for start, piece in _pieces(source, BLOCK // math.gcd(columns, BLOCK)):
        part, state = bnb.functional.quantize_4bit(
            piece.to(device, dtype).contiguous(), blocksize=BLOCK, quant_type=quant_type
        )
        first = start * columns
        codes[first // 2 : first // 2 + part.numel()] = part.flatten()
        absmax[first // BLOCK : first // BLOCK + state.absmax.numel()] = state.absmax
        code = state.code
    state = bnb.functional.QuantState(
        absmax, torch.Size((rows, columns)), code=code, blocksize=BLOCK, quant_type=quant_type, dtype=dtype
    )
    if double:
        state.offset = absmax.mean()
        state.absmax, state.state2 = bnb.functional.quantize_blockwise(absmax - state.offset, blocksize=NESTED_BLOCK)
        state.nested = True
    return codes, state


def _quantize_8bit(source: WeightSource, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the library's Int8Params makes of a whole weight in `dtype`: (N, K) int8, and a scale for each row."""
    weight = torch.empty(source.shape, dtype=torch.int8, device=device)
    scales = torch.empty(source.shape[0], dtype=torch.float32, device=device)
    for start, piece in _pieces(source, 1):
        values = piece.to(device, dtype).to(torch.float16).contiguous()
        part, row_scales, _ = bnb.functional.int8_vectorwise_quant(values)
        weight[start : start + len(part)] = part
        scales[start : start + len(part)] = row_scales
    return weight, scales


def _pieces(source: WeightSource, multiple: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a weight, small enough to be quantized at once; `multiple` as of WeightSource.blocks."""
    step = max(PIECE // source.shape[1] // multiple, 1) * multiple
    for start, block in source.blocks(multiple):
        for first in range(0, len(block), step):
            yield start + first, block[first : first + step]
