"""Packing: the native search gives the bytes of the plain PyTorch one, and these lose as little as they should."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pixtral.errors import QuantizationError
from pixtral.ops import linear_native, quantized_weight
from pixtral.ops.linear import linear
from pixtral.ops.linear_reference import linear_reference
from pixtral.ops.native import library as native_library
from pixtral.ops.native.library import ISAS, kernels
from pixtral.ops.quantized_weight import (
    LEVELS4,
    QuantizedWeight,
    choose_group_size,
    dequantize_reference,
    dequantize_weight,
    pack_codes,
    quantize_reference,
    quantize_weight,
    quantized_shapes,
    unpack_codes,
)

TENSORS = ("codes", "scales", "row_scales")


def error(weight: Tensor, bits: int, group: int) -> float:
    """Squared, relative to the weights'."""
    found = dequantize_weight(quantize_weight(weight, bits, group), torch.float32)
    return float((found - weight).square().sum() / weight.square().sum())


def kinds(rows: int, width: int) -> Iterator[Tensor]:
    """Weights of many sizes and shapes of distribution."""
    normal = torch.randn(rows, width)
    yield normal
    yield (normal**3).to(torch.bfloat16)
    yield torch.where(torch.arange(width) % 50 == 3, 50.0, 1.0) * normal
    yield (normal * 0.02).to(torch.float16)
    yield normal * 1e30
    yield normal * 1e-25
    yield normal * (torch.arange(rows) % 3 == 0)[:, None]
    yield normal.round()
    yield torch.full((rows, width), -0.25)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_native_gives_the_bytes_of_the_twin(isa: str, bits: int, group: int) -> None:
    for index, weight in enumerate(kinds(37, 5 * group)):
        found, expected = quantize_weight(weight, bits, group), quantize_reference(weight, bits, group)
        found.check()
        for name in TENSORS:
            assert torch.equal(getattr(found, name), getattr(expected, name)), (index, name)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(dequantize_weight(found, dtype), dequantize_reference(expected, dtype)), (index, dtype)


def test_threads_and_strides_do_not_change_the_result(isa: str) -> None:
    weight = torch.randn(100, 128)
    expected = quantize_weight(weight, 4, 64)
    torch.set_num_threads(2)
    for same in (weight, weight.t().contiguous().t(), torch.cat([weight, weight], dim=1)[:, :128], weight.double()):
        found = quantize_weight(same, 4, 64)
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in TENSORS)
    torch.set_num_threads(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(isa: str, value: float) -> None:
    weight = torch.randn(70, 128, dtype=torch.bfloat16)
    weight[66, 3] = weight[40, 100] = weight[40, 120] = value
    with pytest.raises(QuantizationError, match=rf"weight\[40, 100\] is {value}"):
        quantize_weight(weight, 4, 64)
    with pytest.raises(QuantizationError, match=rf"weight\[40, 100\] is {value}"):
        quantize_reference(weight, 8, 64)


def test_zeros_stay_zeros(isa: str) -> None:
    weight = torch.randn(20, 128)
    weight[3], weight[7, 64:] = 0, 0
    quantized = quantize_weight(weight, 4, 64)
    assert quantized.row_scales[3] == 0 and not quantized.row_scales[20:].any()
    assert not dequantize_weight(quantized, torch.float32)[weight == 0].any()


def test_errors_are_as_small_as_documented() -> None:
    """Squared, in groups of 64; docs/quantization.md has the table. Q4_0 (4.5 bits) leaves 0.0074 of a Gaussian's."""
    normal = torch.randn(64, 4096)
    assert error(normal, 4, 64) < 0.0066
    assert error(normal, 4, 32) < error(normal, 4, 64) < error(normal, 4, 128)
    assert error(normal, 8, 64) < 4e-5
    laplace = torch.distributions.Laplace(0.0, 1.0).sample((64, 4096))
    assert error(laplace, 4, 64) < 0.0096
    student = torch.distributions.StudentT(4.0).sample((64, 4096))
    assert error(student, 4, 64) < 0.0117


def test_scales_are_better_than_the_largest_weight_over_the_largest_level() -> None:
    weight = torch.randn(64, 64)
    quantized = quantize_weight(weight, 4, 64)
    levels = torch.tensor(LEVELS4, dtype=torch.float32)
    naive = weight.abs().amax(1, keepdim=True) / 110
    nearest = (weight[..., None] / naive[..., None] - levels).abs().argmin(-1)
    plain = (levels[nearest] * naive - weight).square().sum()
    assert (dequantize_weight(quantized, torch.float32) - weight).square().sum() < 0.9 * plain


def test_codes_lie_where_the_format_says() -> None:
    codes = torch.randint(0, 16, (32, 64), dtype=torch.uint8)
    quantized = pack_codes(codes, 4)
    row, column = 21, 37  # tile 1, lane 5; step 4, high half, j = 1
    assert int(quantized[1, 4, 4 * 5 + 1]) >> 4 == codes[row, column]
    assert torch.equal(unpack_codes(quantized, 4), codes)
    quantized = pack_codes(codes, 8)
    assert quantized[1, 9, 4 * 5 + 1] == codes[row, column]
    assert torch.equal(unpack_codes(quantized, 8), codes)


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(QuantizationError, match="weights in 3 bits are not supported"):
        quantized_shapes(3, 64, 16, 64)
    with pytest.raises(QuantizationError, match=r"groups of 48 .* 96 input features; choose one of \[32\]"):
        quantized_shapes(4, 48, 16, 96)
    with pytest.raises(QuantizationError, match="this layer cannot be quantized"):
        quantize_weight(torch.randn(3, 40), 4, 64)
    assert [choose_group_size(width) for width in (5120, 96, 40)] == [64, 32, None]


def test_sizes() -> None:
    quantized = quantize_weight(torch.randn(160, 512), 4, 64)
    bits = 8 * quantized.nbytes() / (160 * 512)
    assert bits == 4 + 8 / 64 + 32 / 512
    part = quantized.tiles(2, 4)
    assert torch.equal(dequantize_weight(part, torch.float32), dequantize_weight(quantized, torch.float32)[32:64])
    assert dequantize_weight(quantize_weight(torch.empty(0, 64), 4, 64), torch.float32).shape == (0, 64)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As after an installation without a compiler."""
    caches = (native_library._open, kernels, linear_native._function, quantized_weight._function)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr("pixtral.ops.native.library.importlib.util.find_spec", lambda name: None)
    yield
    for cache in caches:
        cache.cache_clear()


def test_without_the_library_there_is_one_warning_and_the_twin_runs(no_library: None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weight = torch.randn(20, 64)
        quantized = quantize_weight(weight, 4, 64)
        expected = quantize_reference(weight, 4, 64)
        assert torch.equal(quantized.codes, expected.codes)
        x = torch.randn(2, 64)
        assert torch.equal(linear(x, [quantized])[0], linear_reference(x, quantized))
        assert torch.equal(dequantize_weight(quantized, torch.float32), dequantize_reference(quantized, torch.float32))
    assert [str(w.message).split(",")[0] for w in caught] == ["quantized layers run in plain PyTorch"]


def test_the_variable_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    library = kernels()
    if library is None:
        pytest.skip("the kernels are not built")
    weight = quantize_weight(torch.randn(20, 64), 4, 64)
    assert isinstance(weight, QuantizedWeight)
    before = library.isa
    try:
        monkeypatch.setenv("PIXTRAL_ISA", "portable")
        assert native_library.Kernels(library.path).isa == "portable"
        x = torch.randn(2, 64)
        assert torch.equal(linear(x, [weight])[0], linear_reference(x, weight))
        monkeypatch.setenv("PIXTRAL_ISA", "sse9")
        with pytest.raises(
            ValueError, match="PIXTRAL_ISA is 'sse9'; expected one of portable, avx2, avx512, avx512_bf16"
        ):
            native_library.Kernels(library.path)
    finally:
        library.function("px_set_isa", [ctypes.c_int], ctypes.c_int)(ISAS.index(before))
