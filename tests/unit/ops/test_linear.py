"""Quantized linear layers: every instruction set gives what the plain PyTorch version gives, however it is called."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixtral.errors import ConfigError, QuantizationError
from pixtral.ops.linear import gated_linear, linear
from pixtral.ops.linear_reference import gated_linear_reference, linear_reference, quantize_activations
from pixtral.ops.quantized_weight import QuantizedWeight, dequantize_weight, quantize_weight, quantized_shapes

HALVES = (torch.bfloat16, torch.float16)
# of silu(gate) * up: exponentials differ in their last bit, and results in the last bit of the type
GATED = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def random_weight(bits: int, group: int, rows: int, width: int) -> QuantizedWeight:
    """Any bytes that the format allows."""
    shapes = quantized_shapes(bits, group, rows, width)
    codes = torch.randint(0 if bits == 4 else 1, 256, shapes["codes"][1], dtype=torch.uint8)
    scales = torch.randint(-127 if bits == 4 else 0, 128, shapes["scales"][1], dtype=torch.int8)
    return QuantizedWeight(bits, group, rows, width, codes, scales, torch.rand(shapes["row_scales"][1]) * 1e-3)


ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 64, 300)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_instruction_set_equals_the_twin(isa: str, bits: int, group: int) -> None:
    for index, rows in enumerate(ROWS):
        width = group * (1 + 5 * index % 13)
        names = [1 + 7 * index, 16, 17 + index]
        dtype = (torch.float32, *HALVES)[index % 3]
        x = torch.randn(rows, width).to(dtype)
        weights = [random_weight(bits, group, n, width) for n in names]
        biases = [torch.randn(names[0]).to(dtype), None, torch.randn(names[2])]
        for out, weight, bias in zip(linear(x, weights, biases), weights, biases, strict=True):
            assert out.dtype == dtype and out.shape == (rows, weight.out_features)
            torch.testing.assert_close(out, linear_reference(x, weight, bias), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_the_largest_sums_do_not_overflow(isa: str, bits: int, group: int) -> None:
    """Levels at either end with the largest activations of either sign, all scales 127: no step may saturate."""
    ends = (0x00, 0xFF) if bits == 4 else (1, 255)
    for end in ends:
        weight = random_weight(bits, group, 32, 256)
        weight.codes.fill_(end)
        weight.scales.fill_(127)
        for rows in (1, 9):
            x = torch.full((rows, 256), 3.0) * torch.tensor([1.0, -1.0])[torch.arange(rows) % 2][:, None]
            torch.testing.assert_close(linear(x, [weight])[0], linear_reference(x, weight, None), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_gated_equals_the_twin(isa: str, bits: int, rows: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, 576).to(dtype)
    gate, up = (random_weight(bits, 64, 53, 576) for _ in range(2))
    expected = gated_linear_reference(x, gate, up)
    torch.testing.assert_close(gated_linear(x, gate, up), expected, rtol=GATED[dtype], atol=1e-6)


def test_gates_far_from_zero(isa: str) -> None:
    weight = random_weight(8, 32, 32, 32)
    x = torch.randn(9, 32) * 1e6
    torch.testing.assert_close(
        gated_linear(x, weight, weight), gated_linear_reference(x, weight, weight), rtol=1e-5, atol=0
    )


def test_empty_and_strided(isa: str) -> None:
    weight = random_weight(4, 32, 20, 96)
    assert linear(torch.empty(0, 96), [weight])[0].shape == (0, 20)
    assert gated_linear(torch.empty(0, 96), weight, weight).shape == (0, 20)
    assert linear(torch.randn(3, 96), []) == []
    nothing = random_weight(4, 32, 0, 96)
    assert linear(torch.randn(3, 96), [nothing, weight])[0].shape == (3, 0)
    wide = torch.randn(10, 3, 200)
    for x in (wide[:, 1, 7:103], torch.randn(96, 10).t(), torch.randn(1, 96).expand(10, 96)):
        torch.testing.assert_close(linear(x, [weight])[0], linear_reference(x, weight), rtol=0, atol=0)


def test_several_bits_and_group_sizes_in_one_call(isa: str) -> None:
    x = torch.randn(5, 128)
    weights = [random_weight(bits, group, 24, 128) for bits in (4, 8) for group in (32, 64, 128)]
    for out, weight in zip(linear(x, weights), weights, strict=True):
        torch.testing.assert_close(out, linear_reference(x, weight), rtol=0, atol=0)
    expected = gated_linear_reference(x, weights[0], weights[5])
    torch.testing.assert_close(gated_linear(x, weights[0], weights[5]), expected, rtol=2e-6, atol=1e-6)


def test_a_nan_or_infinity_makes_its_row_nan_and_no_other(isa: str) -> None:
    weight = random_weight(4, 64, 20, 320)
    x = torch.randn(9, 320)
    expected = linear(x, [weight])[0]
    x[2, 300], x[5, 0] = float("nan"), float("-inf")
    out = linear(x, [weight])[0]
    assert out[[2, 5]].isnan().all()
    others = [0, 1, 3, 4, 6, 7, 8]
    assert torch.equal(out[others], expected[others])


def test_zero_and_tiny_activations(isa: str) -> None:
    weight = random_weight(8, 64, 20, 256)
    x = torch.randn(3, 256) * torch.tensor([0.0, 1e-38, 1e30])[:, None]
    out = linear(x, [weight])[0]
    assert not out[:2].any() and out[2].isfinite().all()
    assert torch.equal(out, linear_reference(x, weight))


def test_several_threads_at_once(isa: str) -> None:
    weights = [random_weight(bits, 64, 200, 256) for bits in (4, 8)]
    xs = [torch.randn(rows, 256) for rows in (1, 5, 40, 100)]
    expected = [[linear_reference(x, weight) for weight in weights] for x in xs]
    wrong: list[int] = []

    def work(index: int) -> None:
        torch.set_num_threads(2)  # of this thread's calls
        for _ in range(30):
            if not all(map(torch.equal, linear(xs[index], weights), expected[index])):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(1)
    assert not wrong


@pytest.mark.parametrize("activations", ["int8", "bf16"])
def test_the_product_is_that_of_the_dequantized_weights(activations: str) -> None:
    gate, up = (quantize_weight(torch.randn(40, 256), 4, 64) for _ in range(2))
    x = torch.randn(6, 256)
    weights = [dequantize_weight(weight, torch.float32) for weight in (gate, up)]
    limit = 0.02 if activations == "int8" else 1e-6  # squared, 8 bits of activations cost about 1e-4

    def distance(found: Tensor, expected: Tensor) -> float:
        return float((found - expected).norm() / expected.norm())

    bias = torch.randn(40)
    first, second = linear(x, [gate, up], [None, bias], activations=activations)
    assert distance(first, x @ weights[0].t()) < limit
    assert distance(second, x @ weights[1].t() + bias) < limit
    found = gated_linear(x, gate, up, activations=activations)
    assert distance(found, F.silu(x @ weights[0].t()) * (x @ weights[1].t())) < limit


def test_gradients_are_those_of_the_dequantized_weights() -> None:
    gate, up = (quantize_weight(torch.randn(40, 256), 4, 64) for _ in range(2))
    dense = [dequantize_weight(weight, torch.float32) for weight in (gate, up)]
    bias = torch.randn(40, requires_grad=True)
    x = torch.randn(6, 256, requires_grad=True)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.sum(), (x, bias), allow_unused=True, materialize_grads=True)

    for activations in ("int8", "bf16"):
        first, second = linear(x, [gate, up], [bias, None], activations=activations)
        found = gradients(first + 3 * second)
        expected = gradients(F.linear(x, dense[0], bias) + 3 * F.linear(x, dense[1]))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        found = gradients(gated_linear(x, gate, up, activations=activations))
        expected = gradients(F.silu(F.linear(x, dense[0])) * F.linear(x, dense[1]))
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-3)


def test_compiled_and_exported() -> None:
    gate, up = (random_weight(4, 64, 40, 128) for _ in range(2))
    bias = torch.randn(40)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = linear(x, [gate, up], [bias, None])
            return first + second + gated_linear(x, gate, up) + linear(x, [up], activations="bf16")[0]

    layer = Layer()
    x = torch.randn(5, 128)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    rows = torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
    assert torch.equal(exported.module()(x[:3]), layer(x[:3]))


def test_operators() -> None:
    gate, up = (random_weight(4, 32, 20, 64) for _ in range(2))
    lists = tuple([getattr(weight, name) for weight in (gate, up)] for name in ("codes", "scales", "row_scales"))
    numbers = ([4, 4], [32, 32], [20, 20])
    x = torch.randn(3, 64, requires_grad=True)
    operators = torch.ops.pixtral
    for activations in ("int8", "bf16"):
        torch.library.opcheck(operators.linear.default, (x, [], *lists, *numbers, activations))
        torch.library.opcheck(operators.gated_linear.default, (x, *lists, *numbers, activations))
    biases = [torch.randn(20, requires_grad=True), torch.empty(0)]
    torch.library.opcheck(operators.linear.default, (x, biases, *lists, *numbers, "int8"))
    tensors = (gate.codes, gate.scales, gate.row_scales)
    torch.library.opcheck(operators.dequantize_weight.default, (*tensors, 4, 32, 20, torch.bfloat16))
    torch.library.opcheck(operators.quantize_weight.default, (torch.randn(20, 64), 4, 32))


def test_a_call_that_is_traced_reaches_the_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    weight = random_weight(4, 32, 20, 64)
    graph = make_fx(lambda x: linear(x, [weight])[0])(torch.randn(2, 64))
    assert "pixtral.linear" in graph.code


def test_outliers_in_the_activations_cost_less_than_a_third_of_what_the_weights_cost() -> None:
    x = torch.randn(64, 4096)
    outliers = torch.randperm(4096)[:4]  # 0.1 % of the channels
    x[:, outliers] *= 50
    weight = torch.randn(128, 4096)
    exact = x @ weight.t()
    quantized = quantize_weight(weight, 4, 64)

    def error(out: Tensor) -> float:
        return float((out - exact).square().sum() / exact.square().sum())

    of_weights = error(x @ dequantize_weight(quantized, torch.float32).t())
    levels, scales = quantize_activations(x)
    rounded = levels.float() * scales.repeat_interleave(128, dim=1)
    of_activations = error(rounded @ weight.t())
    assert of_activations < of_weights / 3
    assert error(linear(x, [quantized])[0]) < of_weights * 4 / 3


def test_what_does_not_fit_is_refused(isa: str) -> None:
    weight = random_weight(4, 32, 20, 64)
    with pytest.raises(QuantizationError, match="input has 96 features, but the weight takes 64"):
        linear(torch.randn(2, 96), [weight])
    with pytest.raises(QuantizationError, match="20 output features and up has 36"):
        gated_linear(torch.randn(2, 64), weight, random_weight(4, 32, 36, 64))
    with pytest.raises(QuantizationError, match="bias has shape"):
        linear(torch.randn(2, 64), [weight], [torch.randn(21)])
    fewer = QuantizedWeight(4, 32, 40, 64, weight.codes, weight.scales, weight.row_scales)
    with pytest.raises(QuantizationError, match=r"codes is torch.uint8 \(2, 8, 64\)"):
        linear(torch.randn(2, 64), [fewer])
    apart = QuantizedWeight(4, 32, 20, 64, weight.codes.repeat(1, 1, 2)[..., ::2], weight.scales, weight.row_scales)
    with pytest.raises(QuantizationError, match="contiguous"):
        linear(torch.randn(2, 64), [apart])
    with pytest.raises(ConfigError, match="activations is 'fp8'"):
        linear(torch.randn(2, 64), [weight], activations="fp8")
