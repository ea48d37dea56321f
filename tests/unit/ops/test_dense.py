"""Products of bfloat16 in the kernels: the same as PyTorch's in float32, rounded once, for any number of rows."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from isas import using_isa
from torch import Tensor
from torch.nn import functional as F

from pixtral.ops.dense import dense_gated_linear, dense_linear, runs_dense

needs_kernel = pytest.mark.usefixtures("vector_isa")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(found: Tensor, expected: Tensor) -> None:
    """Within the rounding of one bfloat16 (8 bits) and the order of sums."""
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2e-3)


@needs_kernel
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 96, 97, 150, 300])
def test_equals_pytorch(rows):
    for (width, outputs), bias in itertools.product([(2, 1), (34, 7), (130, 9), (256, 300), (1034, 40)], [False, True]):
        x, weights = drawn(rows, width), [drawn(n, width, seed=n) / width**0.5 for n in (outputs, 8, outputs + 257)]
        biases = [drawn(len(w), seed=3) if bias else None for w in weights]
        assert runs_dense(x, *weights)
        for out, w, b in zip(dense_linear(x, weights, biases), weights, biases, strict=True):
            assert out.dtype == torch.bfloat16
            close(out, F.linear(x.float(), w.float(), None if b is None else b.float()))
        gate, up = weights[0], drawn(outputs, width, seed=9) / width**0.5
        close(dense_gated_linear(x, gate, up), F.silu(x.float() @ gate.float().T) * (x.float() @ up.float().T))


@needs_kernel
@pytest.mark.parametrize("rows", [9, 60])
def test_many_outputs_are_written_past_the_caches(rows):
    x, weight = drawn(rows, 16), drawn(1 << 15, 16, seed=1)
    close(dense_linear(x, [weight], [None])[0], x.float() @ weight.float().T)


@needs_kernel
def test_gates_far_from_zero():
    x, gate = drawn(12, 32) * 1e15, drawn(8, 32, seed=1)
    expected = F.silu(x.float() @ gate.float().T) * (x.float() @ gate.float().T)
    torch.testing.assert_close(dense_gated_linear(x, gate, gate).float(), expected, rtol=2**-7, atol=1e-6)


@needs_kernel
def test_a_row_does_not_depend_on_its_neighbours():
    x, weight, bias, up = drawn(100, 266), drawn(70, 266, seed=1), drawn(70, seed=2), drawn(70, 266, seed=3)
    (whole,) = dense_linear(x, [weight], [None])
    for start, end in ((0, 1), (3, 5), (7, 15), (7, 16), (3, 20), (16, 64), (40, 100)):
        assert dense_linear(x[start:end], [weight], [None])[0].equal(whole[start:end])
        pair = dense_linear(x[start:end], [weight, weight[:33]], [bias, None])
        assert pair[0].equal(dense_linear(x, [weight], [bias])[0][start:end]) and pair[1].equal(whole[start:end, :33])
        assert dense_gated_linear(x[start:end], weight, up).equal(dense_gated_linear(x, weight, up)[start:end])


@needs_kernel
def test_rows_that_lie_apart():
    x, weight = drawn(40, 300)[:, 40:104], drawn(20, 64, seed=1)
    close(dense_linear(x, [weight], [None])[0], x.float() @ weight.float().T)
    turned = drawn(64, 40).T
    close(dense_linear(turned, [weight], [None])[0], turned.float() @ weight.float().T)


@needs_kernel
def test_not_a_number_stays_in_its_row():
    x, weight = drawn(20, 64), drawn(20, 64, seed=1)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    (out,) = dense_linear(x, [weight], [None])
    assert out[3].isnan().all() and not out[7].isfinite().any()
    rest = [i for i in range(20) if i not in (3, 7)]
    close(out[rest], x[rest].float() @ weight.float().T)


@needs_kernel
def test_several_threads_at_once():
    x, weight = drawn(100, 256), drawn(300, 256, seed=1)
    (expected,) = dense_linear(x, [weight], [None])

    def again(_: int) -> bool:
        with torch.no_grad():
            return dense_linear(x, [weight], [None])[0].equal(expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(again, range(40)))


def test_what_is_left_to_pytorch():
    x, weight = drawn(20, 64), drawn(20, 64)
    assert not runs_dense(x.float(), weight)
    assert not runs_dense(x, weight.float())
    assert not runs_dense(x[None], weight)
    assert not runs_dense(x, weight[:, :32])
    assert not runs_dense(x, drawn(64, 20).T)
    assert not runs_dense(drawn(4, 3), drawn(4, 3))
    assert not runs_dense(x.to("meta"), weight.to("meta"))
    with torch.enable_grad():
        assert not runs_dense(x, weight)


@needs_kernel
def test_another_instruction_set_is_left_to_pytorch():
    with using_isa("portable"):
        assert not runs_dense(drawn(20, 64), drawn(20, 64))
