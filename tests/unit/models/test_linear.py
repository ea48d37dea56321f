"""Linear layers: a row's result is the same alone as among others, where it is taken twice and where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pixtral.layers import linear
from pixtral.layers.linear import applied, project
from pixtral.ops.native.library import kernels_if_built

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def layer_of(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=dtype).requires_grad_(False)


@pytest.mark.skipif(not AVX512, reason="PyTorch has another kernel there")
@pytest.mark.parametrize("native", [True, False])
@torch.no_grad()
def test_a_row_alone_has_the_bits_it_has_among_others(native, monkeypatch):
    if not native:
        monkeypatch.setattr(linear, "runs_dense", lambda *_: False)
    layer, x = layer_of(4096, 2048, torch.bfloat16), torch.randn(32, 4096).bfloat16()
    alone = torch.cat([applied(layer, row) for row in x.split(1)])
    assert alone.shape == (32, 2048)
    assert alone.equal(torch.cat(project(torch.cat([x]), layer)))
    for rows in (2, 3, 7, 11, 16):
        assert alone.equal(torch.cat([applied(layer, part) for part in x.split(rows)])), rows


@pytest.mark.skipif(not AVX512, reason="nothing is taken twice there")
def test_only_a_plain_layer_takes_a_row_twice(monkeypatch):
    monkeypatch.setattr(linear, "runs_dense", lambda *_: False)
    seen = []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: seen.append(tuple(x.shape)) or forward(self, x))

    class Wrapped(nn.Linear):
        pass

    half, row = layer_of(8, 4, torch.bfloat16), torch.randn(1, 8).bfloat16()
    hooked = layer_of(8, 4, torch.bfloat16)
    hooked.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        assert applied(half, row).shape == (1, 4)
        assert seen.pop() == (2, 8)
        assert applied(half, row[None]).shape == (1, 1, 4)
        assert seen.pop() == (2, 8)
        for layer, x in (
            (hooked, row),
            (Wrapped(8, 4, dtype=torch.bfloat16), row),
            (layer_of(8, 4, torch.float32), row.float()),
            (half, row.expand(3, -1)),
            (half, row[:0]),
        ):
            assert applied(layer, x).equal(forward(layer, x))
            assert seen.pop() == tuple(x.shape)
    applied(half, row)
    assert seen == [(1, 8)]  # gradients would count it twice as well


@pytest.mark.skipif(not AVX512 or kernels_if_built() is None, reason="no kernel for this CPU")
@torch.no_grad()
def test_the_kernels_take_plain_layers_alone(monkeypatch):
    taken = []
    real: Any = vars(linear)["dense_linear"]
    monkeypatch.setattr(linear, "dense_linear", lambda *call: taken.append(1) or real(*call))
    layer, x = layer_of(64, 40, torch.bfloat16), torch.randn(30, 64).bfloat16()
    hooked = layer_of(64, 40, torch.bfloat16)
    hooked.register_forward_hook(lambda *_: None)
    expected = layer(x)
    torch.testing.assert_close(project(x, layer, layer)[1], expected, rtol=0.01, atol=0.01)
    assert len(taken) == 1
    for layers, rows in (([layer, hooked], x), ([layer_of(64, 40, torch.float32)], x.float())):
        project(rows, *layers)
    assert len(taken) == 1
