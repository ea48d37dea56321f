"""QuantizedLinear: the operation behind a module, and what happens when a model is moved, cast, copied or trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pixtral.layers.linear import QuantizedLinear
from pixtral.ops.linear import linear
from pixtral.ops.quantized_weight import dequantize_weight, quantize_weight


def layer(bits: int = 4, bias: bool = True, activations: str = "int8") -> tuple[QuantizedLinear, torch.Tensor]:
    """40 x 64, and the weight that it holds."""
    made = QuantizedLinear(64, 40, bias, bits=bits, group_size=32, activations=activations)
    made.fill(quantize_weight(torch.randn(40, 64), bits, 32))
    if bias:
        nn.init.normal_(made.bias)  # type: ignore[arg-type]
    return made, dequantize_weight(made.quantized_weight, torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("activations", ["int8", "bf16"])
def test_it_is_the_operation(bits: int, activations: str) -> None:
    made, weight = layer(bits, activations=activations)
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        (expected,) = linear(x.view(6, 64), [made.quantized_weight], [made.bias], activations=activations)
        assert torch.equal(made(x), expected.view(2, 3, 40))
        error = (made(x) - nn.functional.linear(x, weight, made.bias)).abs().max()
    assert error < (0.25 if activations == "int8" else 1e-4)  # five times the deviation of rounding to x.max() / 127
    assert (error > 1e-3) == (activations == "int8")


def test_a_fresh_one_is_zero() -> None:
    made = QuantizedLinear(64, 40, bits=4, group_size=64)
    assert not made(torch.randn(3, 64)).any()
    assert made.bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_leaves_the_weight_as_it_is(dtype: torch.dtype) -> None:
    made, weight = layer()
    made.to(dtype)
    assert made.row_scales.dtype == torch.float32
    assert (made.codes.dtype, made.scales.dtype) == (torch.uint8, torch.int8)
    assert torch.equal(dequantize_weight(made.quantized_weight, torch.float32), weight)
    assert made.bias is not None and made.bias.dtype == dtype
    if dtype != torch.float64:
        assert made(torch.randn(2, 64, dtype=dtype)).dtype == dtype


def test_it_moves_as_one() -> None:
    made, _ = layer()
    made.to("meta").half()
    assert {tensor.device.type for tensor in (*made.buffers(), *made.parameters())} == {"meta"}
    made.to_empty(device="cpu")
    assert made.row_scales.dtype == torch.float32
    assert made.row_scales.device == torch.device("cpu")


def test_state_and_copies() -> None:
    made, weight = layer()
    again = QuantizedLinear(64, 40, True, bits=4, group_size=32)
    again.load_state_dict(made.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(again(x), made(x))
    other = copy.deepcopy(made)
    other.codes.zero_()
    assert torch.equal(dequantize_weight(made.quantized_weight, torch.float32), weight)


def test_training_trains_what_there_is() -> None:
    made, weight = layer(activations="bf16")
    x = torch.randn(2, 64, requires_grad=True)
    made.train()(x).sum().backward()
    assert made.bias is not None and torch.equal(made.bias.grad, torch.full((40,), 2.0))  # type: ignore[arg-type]
    assert torch.allclose(x.grad, weight.sum(0).expand(2, 64), atol=1e-4)  # type: ignore[arg-type]
    assert [name for name, _ in made.named_parameters()] == ["bias"]


def test_a_weight_of_another_shape_is_ours_to_prevent() -> None:
    made, _ = layer()
    with pytest.raises(AssertionError):
        made.fill(quantize_weight(torch.randn(48, 64), 4, 32))


def test_it_prints_what_it_is() -> None:
    assert repr(layer()[0]) == "QuantizedLinear(64, 40, bias=True, bits=4, group_size=32)"
