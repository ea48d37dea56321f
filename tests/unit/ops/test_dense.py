"""Layers in bfloat16 on our own kernel: beside exact sums, and a row's bits do not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pixtral.models.projections import applied
from pixtral.ops.dense import _max_columns, dense, takes

pytestmark = pytest.mark.skipif(_max_columns() == 0, reason="no kernel for bfloat16 layers on this machine")

SIZES = [(1, 2), (7, 6), (16, 32), (31, 34), (32, 64), (33, 96), (100, 130), (1000, 514), (32768, 10), (32800, 12)]


@pytest.mark.parametrize(("outputs", "columns"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_beside_exact_sums(outputs, columns, biased):
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, columns, generator=generator).bfloat16()
    bias = torch.randn(outputs, generator=generator).bfloat16() if biased else None
    x = torch.randn(27, columns + 2, generator=generator).bfloat16()[:, 1:-1]  # rows apart from each other
    out = dense(x, weight, bias)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    size = x.double().abs() @ weight.double().T.abs() + 1
    assert ((out.double() - exact).abs() <= exact.abs() / 256 + size * 1e-6).all()
    for rows in (1, 2, 3, 8, 9):
        assert dense(x[5 : 5 + rows], weight, bias).equal(out[5 : 5 + rows])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert dense(x, weight, bias).equal(out)
    finally:
        torch.set_num_threads(before)
    assert dense(x[:0], weight, bias).shape == (0, outputs)


def test_what_it_takes():
    layer, x = nn.Linear(6, 4).bfloat16(), torch.ones(3, 6).bfloat16()
    assert not takes(layer, x), "gradients are wanted"
    with torch.no_grad():
        assert takes(layer, x) and applied(layer, x).equal(dense(x, layer.weight, layer.bias))
        assert not takes(layer, x.float()) and not takes(layer.float(), x)
        assert not takes(nn.Linear(5, 4).bfloat16(), torch.ones(3, 5).bfloat16()), "an odd number of columns"
        assert not takes(nn.Linear(6, 4).bfloat16(), torch.ones(2, 3, 6).bfloat16())
        assert not takes(nn.Linear(_max_columns() + 2, 1).bfloat16(), torch.ones(1, _max_columns() + 2).bfloat16())
        layer = nn.Linear(6, 4).bfloat16()
        layer.register_forward_hook(lambda *_: torch.zeros(3, 4))
        assert not applied(layer, x).any(), "a hook is called"
        assert applied(nn.Linear(6, 4, device="meta").bfloat16(), x.to("meta")).is_meta
