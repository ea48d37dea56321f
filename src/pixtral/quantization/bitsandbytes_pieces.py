"""A weight quantized by bitsandbytes piece by piece: the bytes of the whole, with little memory beside it.

This module imports the library; only `bitsandbytes_layers.py` imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor

from pixtral.quantization.base import WeightSource

PIECE = 1 << 20  # weights that are quantized at a time; doing so takes about 24 bytes for each of them
WORK_BYTES = 24 * PIECE
BLOCK = 64  # weights that share a scale
NESTED_BLOCK = 256  # scales that share a scale


def quantize_4bit(
    source: WeightSource, device: torch.device, dtype: torch.dtype, quant_type: str, double: bool
) -> tuple[Tensor, Any]:
    """What the library's quantize_4bit makes of a whole weight in `dtype`.

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
    packed = torch.empty(math.ceil(rows * columns / 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(math.ceil(rows * columns / BLOCK), dtype=torch.float32, device=device)
    code = None
    for start, piece in _pieces(source, BLOCK // math.gcd(columns, BLOCK)):
        part, state = bnb.functional.quantize_4bit(
            piece.to(device, dtype).contiguous(), blocksize=BLOCK, quant_type=quant_type
        )
        first = start * columns
        packed[first // 2 : first // 2 + part.numel()] = part.flatten()
        absmax[first // BLOCK : first // BLOCK + state.absmax.numel()] = state.absmax
        code = state.code
    state = bnb.functional.QuantState(
        absmax, torch.Size((rows, columns)), code=code, blocksize=BLOCK, quant_type=quant_type, dtype=dtype
    )
    if double:
        state.offset = absmax.mean()
        state.absmax, state.state2 = bnb.functional.quantize_blockwise(absmax - state.offset, blocksize=NESTED_BLOCK)
        state.nested = True
    return packed, state


def quantize_8bit(source: WeightSource, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
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
