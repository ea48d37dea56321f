"""The two layers beside the library's own: the same bytes, the same numbers, and what the library gets wrong."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weight_source import TensorSource

from pixtral import BitsAndBytesConfig
from pixtral.errors import CheckpointError

bnb = pytest.importorskip("bitsandbytes")
layers = pytest.importorskip("pixtral.quantization.bitsandbytes_layers")

CPU = torch.device("cpu")
REGULAR, RAGGED, NARROW = (64, 128), (96, 288), (40, 56)  # rows, columns; the fast path on CPUs takes the first only
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
KINDS = list(itertools.product(("nf4", "fp4"), (False, True)))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces in every weight."""
    monkeypatch.setattr("pixtral.quantization.bitsandbytes_layers.PIECE", 1000)


def four(quant_type: str = "nf4", double: bool = False, storage: torch.dtype = torch.uint8) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=storage,
    )


def empty(shape: tuple[int, int], config: BitsAndBytesConfig, dtype: torch.dtype = torch.bfloat16) -> Any:
    rows, columns = shape
    kind = layers.Linear8bitLt if config.load_in_8bit else layers.Linear4bit
    with torch.device("meta"):
        layer = kind(nn.Linear(columns, rows), config)
    torch.manual_seed(1)
    layer.bias = nn.Parameter(torch.randn(rows, dtype=dtype), requires_grad=False)
    return layer.eval()


def filled(weight: Tensor, config: BitsAndBytesConfig) -> Any:
    layer = empty(tuple(weight.shape), config, weight.dtype)
    layer.quantize(TensorSource(weight), CPU, weight.dtype)
    return layer


def librarys(weight: Tensor, config: BitsAndBytesConfig) -> Any:
    """The library's layer, quantized as its manual says."""
    rows, columns = weight.shape
    if config.load_in_8bit:
        layer = bnb.nn.Linear8bitLt(columns, rows, has_fp16_weights=False, threshold=config.llm_int8_threshold)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    else:
        layer = bnb.nn.Linear4bit(
            columns,
            rows,
            compute_dtype=config.bnb_4bit_compute_dtype,
            quant_type=config.bnb_4bit_quant_type,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_storage=config.bnb_4bit_quant_storage,
        )
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, **layer.weight.__dict__).to("cpu")
    layer.bias = empty(tuple(weight.shape), config, weight.dtype).bias
    return layer.eval()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        found = other[name]
        assert (found.dtype, found.shape) == (value.dtype, value.shape), name
        assert torch.equal(found.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [REGULAR, RAGGED, NARROW])
def test_the_bytes_are_the_librarys(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, dtype=dtype)
    for quant_type, double in KINDS:
        for storage in (torch.uint8, torch.bfloat16):
            config = four(quant_type, double, storage)
            same(state(filled(weight, config)), state(librarys(weight, config)))
    config = BitsAndBytesConfig(load_in_8bit=True)
    same(state(filled(weight, config)), state(librarys(weight, config)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_are_the_librarys(dtype: torch.dtype) -> None:
    weight, x = torch.randn(REGULAR, dtype=dtype), 3 * torch.randn(5, REGULAR[1], dtype=dtype)
    assert x.abs().max() > 6  # 8-bit layers treat such columns apart
    for config in (*(four(*kind) for kind in KINDS), BitsAndBytesConfig(load_in_8bit=True)):
        with torch.no_grad():
            assert torch.equal(filled(weight, config)(x), librarys(weight, config)(x))


@pytest.mark.parametrize("shape", [RAGGED, NARROW, (64, 96), (33, 66)])
def test_shapes_that_the_library_cannot_compute_on_a_cpu(shape: tuple[int, int]) -> None:
    weight, x = torch.randn(shape, dtype=torch.bfloat16), torch.randn(2, 3, shape[1], dtype=torch.bfloat16)
    for quant_type, double in KINDS:
        layer = filled(weight, four(quant_type, double))
        with torch.no_grad():
            exact = nn.functional.linear(x.float(), weight.float(), layer.bias.float())
            error = (layer(x).float() - exact).square().mean() / exact.square().mean()
        assert layer(x).dtype == torch.bfloat16
        assert error < 0.03, (quant_type, double)  # of normal weights: 0.009 for nf4, 0.016 for fp4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [REGULAR, RAGGED])
def test_a_layer_that_was_called_saves_what_it_was_made_of(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The library rearranges the weight in the first call and loses the order of the scales when it saves."""
    weight, x = torch.randn(shape, dtype=dtype), torch.randn(5, shape[1], dtype=dtype)
    for quant_type, double in KINDS:
        layer = filled(weight, four(quant_type, double))
        before = state(layer)
        with torch.no_grad():
            out = layer(x)
            same(state(layer), before)
            assert torch.equal(layer(x), out)  # saving did not spoil it
            same({name: value.clone() for name, value in layer.tensors().items()} | {"bias": layer.bias}, before)
            assert torch.equal(copy.deepcopy(layer)(x), out)
            assert torch.equal(layer.to("cpu")(x), out)
            assert layer.to("cpu").weight.shape == before["weight"].shape  # in the order that every device knows
        same(state(layer), before)


@pytest.mark.parametrize("shape", [REGULAR, RAGGED, NARROW])
def test_stored_tensors_fill_a_layer_again(shape: tuple[int, int]) -> None:
    weight, x = torch.randn(shape, dtype=torch.bfloat16), torch.randn(5, shape[1], dtype=torch.bfloat16)
    storages = [four(*kind, storage) for kind in KINDS for storage in (torch.uint8, torch.float16)]
    for config in (*storages, BitsAndBytesConfig(load_in_8bit=True)):
        first = filled(weight, config)
        with torch.no_grad():
            out = first(x)
        tensors = {name: value.clone() for name, value in first.tensors().items()}
        again = empty(shape, config)
        slots = again.slots(stored=True)
        assert slots.keys() == tensors.keys()
        assert all(slots[name].takes(tuple(value.shape), value.dtype) for name, value in tensors.items())
        again.restore(tensors, CPU)
        with torch.no_grad():
            assert torch.equal(again(x), out)
        same(state(again), state(first))
        assert again.nbytes() == first.nbytes()
        kept = [v for name, v in tensors.items() if not name.endswith(("quant_map", "weight_format")) and v.numel()]
        assert abs(sum(v.nbytes for v in kept if "quant_state" not in str(v)) - again.nbytes()) < 200


def test_gradients_pass_through_after_a_call_without() -> None:
    weight = torch.randn(REGULAR, dtype=torch.bfloat16)
    layer, x = filled(weight, four()), torch.randn(3, REGULAR[1], dtype=torch.bfloat16)
    with torch.no_grad():
        layer(x)  # now in the fast path's order, which knows no gradients
    x.requires_grad_()
    layer(x).float().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), weight.float().sum(0).expand(3, -1), rtol=0.1, atol=4)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_sixteen_bit_weights_that_are_quantized_in_every_call() -> None:
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True)
    weight, x = torch.randn(REGULAR, dtype=torch.bfloat16), torch.randn(5, REGULAR[1], dtype=torch.bfloat16)
    layer = filled(weight, config)
    assert torch.equal(layer.weight, weight)
    same(layer.tensors(), {"weight": weight})
    usual = filled(weight, BitsAndBytesConfig(load_in_8bit=True))
    with torch.no_grad():
        assert torch.equal(layer(x), usual(x))


def spoiled(config: BitsAndBytesConfig) -> tuple[Any, dict[str, Tensor]]:
    tensors = filled(torch.randn(REGULAR, dtype=torch.bfloat16), config).tensors()
    return empty(REGULAR, config), {name: value.clone() for name, value in tensors.items()}


def test_broken_stored_tensors_are_refused() -> None:
    key = "weight.quant_state.bitsandbytes__nf4"
    layer, tensors = spoiled(four())
    with pytest.raises(CheckpointError, match="quant_state cannot be read"):
        layer.restore({**tensors, key: torch.randint(0, 255, (40,), dtype=torch.uint8)}, CPU)
    with pytest.raises(CheckpointError, match=r"weight \[64, 64\].*expected one of \[64, 128\]"):
        other = filled(torch.randn(64, 64, dtype=torch.bfloat16), four()).tensors()
        layer.restore({**tensors, key: other[key]}, CPU)
    with pytest.raises(CheckpointError, match="with 64 scales for 64 weights each"):
        layer.restore({**tensors, "weight.absmax": tensors["weight.absmax"][:64]}, CPU)
    layer, tensors = spoiled(BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(CheckpointError, match="order number 1, expected 0"):
        layer.restore({**tensors, "weight_format": torch.tensor(1, dtype=torch.uint8)}, CPU)
