"""Two stages find what one finds: the likeliest token, a draw by inversion, and filters on the likeliest few."""

from __future__ import annotations

import pytest
import torch

from pixtral.engine.sampling_ops import BLOCK, draw, greedy_tokens, pick, warp
from pixtral.engine.sampling_params import SamplingParams

LARGE = 8 * BLOCK


@pytest.mark.parametrize("vocabulary", [5, BLOCK, LARGE, LARGE + 1])
def test_the_likeliest_is_that_of_argmax(vocabulary):
    scores = torch.randn(50, vocabulary).round(decimals=1)  # with ties, of which the first counts
    best, tokens = greedy_tokens(scores)
    assert tokens.equal(scores.argmax(-1)) and best.equal(scores.amax(-1))
    scores[3, vocabulary // 2] = torch.nan
    assert greedy_tokens(scores)[0].isnan().tolist() == [row == 3 for row in range(50)]
    assert greedy_tokens(scores[:0])[1].shape == (0,)


@pytest.mark.parametrize("vocabulary", [1, 5, LARGE, LARGE + 1])
def test_the_likeliest_in_bfloat16(vocabulary):
    scores = torch.randn(50, vocabulary).bfloat16()  # with many ties
    scores[4], scores[5] = scores[4].abs().neg(), -torch.inf
    scores[6] = torch.where(torch.rand(vocabulary) < 0.5, -0.0, 0.0)
    scores[7, vocabulary // 2], scores[8, 0] = torch.inf, -torch.inf
    best, tokens = greedy_tokens(scores)
    assert tokens.equal(scores.float().argmax(-1)) and best.equal(scores.float().amax(-1))
    scores[3, vocabulary // 2], scores[9, -1] = torch.nan, -torch.nan
    assert greedy_tokens(scores)[0].isnan().tolist() == [row in (3, 9) for row in range(50)]
    assert greedy_tokens(scores[:0])[1].shape == (0,)


@pytest.mark.parametrize("columns", [7, BLOCK, LARGE, LARGE + 3])
def test_a_pick_is_the_inverse_of_the_sums(columns):
    weights = torch.rand(200, columns) * (torch.rand(200, columns) < 0.3)
    weights[:, columns // 2] += 1e-3
    uniforms = torch.rand(200, dtype=torch.float64)
    found = pick(weights, uniforms)
    sums = weights.double().cumsum(-1)
    targets = uniforms * sums[:, -1]
    rows = torch.arange(200)
    assert (weights[rows, found] > 0).all()
    assert (sums[rows, found] > targets - 1e-4).all()
    assert (sums[rows, found] - weights[rows, found] <= targets + 1e-4).all()


@pytest.mark.parametrize("columns", [6, LARGE])
def test_the_ends_of_a_pick(columns):
    weights = torch.zeros(2, columns)
    weights[:, 1], weights[:, columns - 3] = 1.0, 3.0
    assert pick(weights, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, columns - 3]
    assert pick(weights, torch.tensor([0.2499, 0.2501], dtype=torch.float64)).tolist() == [1, columns - 3]


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 600},
    {"top_k": LARGE + 9},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.99999},
    {"min_p": 0.02},
    {"min_p": 1e-9},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.7, "min_p": 0.05},
    {"top_p": 0.97, "min_p": 1e-4},
]


@pytest.mark.parametrize("vocabulary", [40, LARGE])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_a_draw_is_a_pick_of_what_the_filters_leave(vocabulary, spread):
    """Whatever stands beside it in the batch, and however many candidates were looked at."""
    params = [SamplingParams(temperature=t, **some) for some in FILTERS for t in (0.3, 1.0)]
    for seed in range(8):
        torch.manual_seed(seed)
        scores = torch.randn(len(params), vocabulary) * spread
        uniforms = torch.rand(len(params), dtype=torch.float64)
        slow = pick(warp(scores, params).softmax(-1), uniforms)
        fast = draw(scores, params, uniforms)
        assert (slow != fast).sum() <= 1, "a sum may round to the other side of the random number, seldom"
        assert draw(scores[3:4], params[3:4], uniforms[3:4]).equal(fast[3:4])
        order = torch.randperm(len(params))
        assert draw(scores[order], [params[i] for i in order], uniforms[order]).equal(fast[order])


def test_draws_follow_the_probabilities():
    scores = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20000, 1)
    uniforms = torch.rand(20000, dtype=torch.float64)
    for some in ({}, {"top_k": 3}):
        counts = draw(scores, [SamplingParams(**some)] * 20000, uniforms).bincount(minlength=3) / 20000
        torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
