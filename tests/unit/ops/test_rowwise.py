"""The kernels of norm and rotary embedding give what PyTorch gives, bit for bit where only roundings are at stake."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pixtral.ops.rowwise import MIN_ADD, add, rms_norm, rms_norm_reference, rotate_pair, rotate_reference

BF16 = torch.bfloat16


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float64, with the two roundings of the reference."""
    scale = (x.double().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.double() * scale).to(BF16) * weight


@pytest.mark.parametrize(("rows", "width"), [(0, 32), (1, 1), (1, 5120), (3, 17), (40, 192), (65, 1024)])
def test_norm(isa: str, rows: int, width: int) -> None:
    """At most a sum's order away from the reference: one unit of bfloat16, seldom."""
    torch.manual_seed(rows)
    x = (torch.randn(rows, width) * 3).to(BF16)
    weight = torch.randn(width).to(BF16)
    out, expected = rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5)
    assert out.dtype == BF16 and out.shape == x.shape
    torch.testing.assert_close(out, exact_norm(x, weight, 1e-5), rtol=2**-7, atol=0)
    assert (out != expected).sum() <= 0.001 * out.numel()
    strided = torch.stack([x, x], dim=1)[:, 1]
    assert torch.equal(rms_norm(strided, weight, 1e-5), out)


def test_norm_of_odd_numbers(isa: str) -> None:
    """Zeros stay zeros; NaN stays NaN; large numbers do not overflow early."""
    weight = torch.ones(64, dtype=BF16)
    assert rms_norm(torch.zeros(2, 64, dtype=BF16), weight, 1e-5).eq(0).all()
    x = torch.ones(2, 64, dtype=BF16)
    x[0, 3] = float("nan")
    out = rms_norm(x, weight, 1e-5)
    assert out[0].isnan().all() and out[1].eq(1).all()
    assert rms_norm(torch.full((1, 64), 1e15, dtype=BF16), weight, 1e-5).eq(1).all()


SIZES = [(0, 4, 2, 8), (1, 32, 8, 128), (33, 6, 2, 32), (5, 3, 1, 2)]


@pytest.mark.parametrize(("rows", "heads", "keys", "channels"), SIZES)
def test_rotation(isa: str, rows: int, heads: int, keys: int, channels: int) -> None:
    """The same roundings: the same bits."""
    torch.manual_seed(channels)
    q, k = torch.randn(rows, heads, channels).to(BF16), torch.randn(rows, keys, channels).to(BF16)
    angle = torch.rand(rows, 1, channels // 2) * 6
    cos, sin = angle.cos().to(BF16), angle.sin().to(BF16)
    q_out, k_out = rotate_pair(q, k, cos, sin)
    assert torch.equal(q_out, rotate_reference(q, cos, sin))
    assert torch.equal(k_out, rotate_reference(k, cos, sin))


def test_what_the_kernels_do_not_take_goes_through_pytorch() -> None:
    """Other dtypes exactly; and gradients."""
    x, weight = torch.randn(3, 8), torch.randn(8)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))
    x16 = x.to(BF16).requires_grad_(True)
    rms_norm(x16, weight.to(BF16), 1e-5).sum().backward()
    assert x16.grad is not None


def test_compiled(isa: str) -> None:
    """The operators can be traced as they are."""
    x, weight = torch.randn(3, 8).to(BF16), torch.randn(8).to(BF16)
    torch.library.opcheck(torch.ops.pixtral.rms_norm.default, (x, weight, 1e-5))
    heads, angles = x.view(3, 2, 4), torch.randn(3, 1, 2).to(BF16)
    torch.library.opcheck(torch.ops.pixtral.rotate_pair.default, (heads, heads, angles, angles))


@pytest.mark.parametrize("count", [3, MIN_ADD + 1, 100_003])
def test_sum(isa: str, count: int) -> None:
    """The same bits."""
    x, y = torch.randn(count).to(BF16), (torch.randn(count) * 100).to(BF16)
    assert torch.equal(add(x, y), x + y)
