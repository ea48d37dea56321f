"""The sampler: filters row by row, draws, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from pixtral.engine.sampler import seeded_generator
from pixtral.errors import GenerationError
from pixtral.generation.sampling import SamplingParams, choose, penalize, warp

GREEDY = SamplingParams(temperature=0)
KINDS = [
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.5, top_k=3),
    SamplingParams(top_p=0.6),
    SamplingParams(top_p=0.0),
    SamplingParams(min_p=0.3),
    SamplingParams(temperature=2.0, top_k=12, top_p=0.8, min_p=0.05),
    SamplingParams(top_k=1),
    SamplingParams(top_k=500, top_p=1.0),
]


def kept(params, values):
    """One row by the definitions, in plain Python: which tokens may come."""
    alive = {i: value / params.temperature for i, value in enumerate(values)}

    def probs():
        top = max(alive.values())
        weights = {i: math.exp(value - top) for i, value in alive.items()}
        return {i: weight / sum(weights.values()) for i, weight in weights.items()}

    if params.top_k:
        best = sorted(alive, key=alive.get, reverse=True)[: params.top_k]
        alive = {i: alive[i] for i in best}
    if params.top_p < 1:
        shares, total, best = probs(), 0.0, []
        for i in sorted(shares, key=shares.get, reverse=True):
            if best and total >= params.top_p:
                break
            best.append(i)
            total += shares[i]
        alive = {i: alive[i] for i in best}
    shares = probs()
    return {i for i in alive if shares[i] >= params.min_p * max(shares.values())}


@pytest.mark.parametrize("params", KINDS[1:])
def test_filters_against_their_definition(params):
    for seed in range(20):
        torch.manual_seed(seed)
        scores = torch.randn(1, 40) * 2
        warped = warp(scores, [params])
        allowed = set(warped[0].isfinite().nonzero().flatten().tolist())
        assert allowed == kept(params, scores[0].double().tolist())
        torch.testing.assert_close(warped[0, list(allowed)], scores[0, list(allowed)] / params.temperature)


def test_rows_do_not_see_each_other():
    scores = torch.randn(len(KINDS), 40) * 2
    copy = scores.clone()
    together = warp(scores, KINDS)
    assert scores.equal(copy)
    for row, params in enumerate(KINDS):
        assert together[row].equal(warp(scores[row : row + 1], [params])[0]), params
    assert together[0].equal(scores[0])


def test_penalty_and_minimum():
    logits = torch.tensor([[2.0, -1.0, 0.5, 3.0], [2.0, -1.0, 0.5, 3.0], [2.0, -1.0, 0.5, 3.0]])
    seen = torch.tensor([[True, True, False, False]] * 3)
    params = [
        SamplingParams(repetition_penalty=2.0),
        SamplingParams(min_tokens=2, stop_token_ids=(3, 99)),
        SamplingParams(min_tokens=2, stop_token_ids=(3,), repetition_penalty=0.5),
    ]
    scores = penalize(logits, params, seen, [0, 1, 2])
    assert scores.tolist() == [[1.0, -2.0, 0.5, 3.0], [2.0, -1.0, 0.5, -math.inf], [4.0, -0.5, 0.5, 3.0]]
    assert logits[0].tolist() == [2.0, -1.0, 0.5, 3.0]
    assert penalize(logits, [GREEDY] * 3, None, [0, 0, 0]) is logits


def test_draws_follow_the_probabilities():
    scores = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20000, 1)
    params = [SamplingParams()] * len(scores)
    counts = choose(scores, params, [None] * len(scores)).bincount(minlength=3) / len(scores)
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    own = [seeded_generator(7, copy, "cpu") for copy in range(4000)]
    counts = choose(scores[:4000], params[:4000], own).bincount(minlength=3) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.035, rtol=0)


def test_the_same_draws_as_multinomial():
    scores = torch.randn(5, 50)
    torch.manual_seed(3)
    ours = choose(scores, [SamplingParams()] * 5, [None] * 5)
    torch.manual_seed(3)
    assert ours.equal(torch.multinomial(scores.softmax(-1), 1).squeeze(1))
    generator = torch.Generator().manual_seed(3)
    assert ours.equal(choose(scores, [SamplingParams()] * 5, [None] * 5, shared=generator))


def test_a_row_keeps_its_noise_when_others_leave():
    scores, params = torch.randn(5, 50), [SamplingParams()] * 5
    for rows in ([0, 1, 2, 3, 4], [1, 4], [3]):
        torch.manual_seed(3)
        everyone = choose(scores, params, [None] * 5)
        torch.manual_seed(3)
        some = choose(scores[rows], params[: len(rows)], [None] * len(rows), slots=(rows, 5))
        assert some.equal(everyone[rows])


def test_greedy_seeded_and_shared_rows_in_one_batch():
    scores = torch.randn(4, 50)
    params = [GREEDY, SamplingParams(), SamplingParams(), SamplingParams()]

    def draw(rows):
        torch.manual_seed(1)
        own = [None, seeded_generator(5, 0, "cpu"), None, seeded_generator(5, 1, "cpu")]
        return choose(scores[rows], [params[row] for row in rows], [own[row] for row in rows]).tolist()

    together = draw([0, 1, 2, 3])
    assert together[0] == int(scores[0].argmax())
    assert draw([1]) + draw([3]) == [together[1], together[3]]


def test_copies_have_different_streams():
    streams = {
        (seed, copy): seeded_generator(seed, copy, "cpu").initial_seed() for seed in range(50) for copy in range(50)
    }
    assert len(set(streams.values())) == len(streams)
    assert seeded_generator(-1, 3, "cpu").initial_seed() != seeded_generator(1, 3, "cpu").initial_seed()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_no_possible_token(broken):
    scores = torch.zeros(3, 4)
    scores[1] = broken
    for params in (GREEDY, SamplingParams()):
        with pytest.raises(GenerationError, match="row 1"):
            choose(scores, [params] * 3, [None] * 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": 2},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": True},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"seed": 1.5},
        {"stop": ("",)},
        {"stop_token_ids": (-1,)},
    ],
)
def test_refused(wrong):
    with pytest.raises(GenerationError, match=next(iter(wrong))):
        SamplingParams(**wrong)
