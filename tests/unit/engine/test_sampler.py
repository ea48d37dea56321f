"""The sampler: filters row by row, draws, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from pixtral.engine.request import Request
from pixtral.engine.sampler import SamplingState, seeded_generator
from pixtral.engine.sampling_ops import warp
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import GenerationError
from pixtral.generation.loop import choose

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


def states_of(params, prompt=()):
    """A continuation for each, all of one prompt."""
    return [SamplingState(Request(p, tuple(prompt), len(prompt), 9, index=index)) for index, p in enumerate(params)]


def tokens_of(scores, params, **options):
    return torch.tensor(choose(scores, states_of(params), **options))


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
    params = [
        SamplingParams(repetition_penalty=2.0),
        SamplingParams(min_tokens=2, stop_token_ids=(3, 99)),
        SamplingParams(min_tokens=2, stop_token_ids=(3,), repetition_penalty=0.5),
    ]
    scores = logits.clone()
    for row, (state, count) in enumerate(zip(states_of(params, prompt=(0, 1)), [0, 1, 2], strict=True)):
        state.request.new_ids += [0] * count
        state.adjust(scores[row])
    assert scores.tolist() == [[1.0, -2.0, 0.5, 3.0], [2.0, -1.0, 0.5, -math.inf], [4.0, -0.5, 0.5, 3.0]]
    assert states_of([GREEDY])[0].plain and not any(state.plain for state in states_of(params))


def test_draws_follow_the_probabilities():
    scores = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20000, 1)
    counts = tokens_of(scores, [SamplingParams()] * len(scores)).bincount(minlength=3) / len(scores)
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    counts = tokens_of(scores[:4000], [SamplingParams(seed=7)] * 4000).bincount(minlength=3) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.035, rtol=0)


def test_the_same_draws_as_multinomial():
    scores = torch.randn(5, 50)
    torch.manual_seed(3)
    ours = tokens_of(scores, [SamplingParams()] * 5)
    torch.manual_seed(3)
    assert ours.equal(torch.multinomial(scores.softmax(-1), 1).squeeze(1))
    generator = torch.Generator().manual_seed(3)
    assert ours.equal(tokens_of(scores, [SamplingParams()] * 5, shared=generator))


def test_a_row_keeps_its_noise_when_others_leave():
    scores, params = torch.randn(5, 50), [SamplingParams()] * 5
    for rows in ([0, 1, 2, 3, 4], [1, 4], [3]):
        torch.manual_seed(3)
        everyone = tokens_of(scores, params)
        torch.manual_seed(3)
        some = tokens_of(scores[rows], params[: len(rows)], slots=(rows, 5))
        assert some.equal(everyone[rows])


def test_greedy_seeded_and_shared_rows_in_one_batch():
    scores = torch.randn(4, 50)
    params = [GREEDY, SamplingParams(seed=5), SamplingParams(), SamplingParams(seed=5)]

    def draw(rows):
        torch.manual_seed(1)
        states = states_of(params)
        return choose(scores[rows], [states[row] for row in rows])

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
            choose(scores, states_of([params] * 3))


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
