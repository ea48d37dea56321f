"""Norm, activations and the gated block, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from pixtral.configuration import ACTIVATIONS
from pixtral.layers.blocks import MLP, RMSNorm, activation

TANH = math.sqrt(2 / math.pi)
FORMULAS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + math.tanh(TANH * (x + 0.044715 * x**3))),
    "gelu_new": lambda x: 0.5 * x * (1 + math.tanh(TANH * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


def test_every_activation_that_a_configuration_may_name() -> None:
    assert FORMULAS.keys() == set(ACTIVATIONS)
    x = torch.linspace(-4, 4, 33)
    for name, formula in FORMULAS.items():
        assert activation(name)(x).tolist() == pytest.approx([formula(v) for v in x.tolist()], abs=1e-6), name


def test_norm() -> None:
    norm = RMSNorm(3, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0])
    x = [3.0, 0.0, -4.0]
    scale = 1 / math.sqrt(25 / 3 + 0.5)
    assert norm(torch.tensor([x]))[0].tolist() == pytest.approx([3 * scale, 0, 4 * scale])


def test_norm_is_computed_in_float32() -> None:
    """In float16 the squares of these would overflow."""
    norm = RMSNorm(4, eps=1e-5).to(torch.float16)
    out = norm(torch.full((1, 4), 1000.0, dtype=torch.float16))
    assert out.dtype == torch.float16 and out.tolist() == [[1.0] * 4]


def test_norm_of_nothing() -> None:
    """Zero stays zero, with finite gradients."""
    norm = RMSNorm(4, eps=1e-5)
    x = torch.zeros(2, 4, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert not out.any() and x.grad is not None and x.grad.isfinite().all() and norm.weight.grad.isfinite().all()


def test_norm_is_rounded_before_it_is_scaled() -> None:
    """As in Transformers: in bfloat16 the order shows."""
    norm = RMSNorm(64, eps=1e-5)
    norm.weight.data = 1 + 0.2 * torch.randn(64)
    norm = norm.to(torch.bfloat16)
    x = torch.randn(50, 64).bfloat16()
    wide = x.float()
    expected = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).bfloat16() * norm.weight
    assert (norm(x) == expected).float().mean() > 0.99


def test_gated_block() -> None:
    mlp = MLP(3, 5, "silu")
    x = torch.randn(7, 3)
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    torch.testing.assert_close(mlp(x), (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T)
    assert all(module.bias is None for module in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
