"""The loop beneath generate(): every sequence goes its own way, however they are batched, chunked and ended."""

from __future__ import annotations

import pytest
import torch
from oracle import greedy
from random_models import llava_dict, random_llava

from pixtral.engine.request import context_length
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import GenerationError, PromptError
from pixtral.generation.loop import Generation, Prompt

LENGTHS = (5, 1, 17, 9, 3)


@pytest.fixture(scope="module")
def model():
    return random_llava(llava_dict(text={"max_position_embeddings": 64}))


def prompts(model, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(20, 90, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        return [Prompt(model.embed(row), tuple(row.tolist())) for row in ids]


def greedy_params(**kwargs):
    return SamplingParams(temperature=0, **kwargs)


def run(*args, **kwargs):
    generation = Generation(*args, **kwargs)
    steps = list(generation)
    return [sequence.new_ids for sequence in generation.sequences], steps, generation


def test_every_way_gives_the_tokens_of_the_oracle(model):
    batch, params = prompts(model), [greedy_params(max_tokens=n) for n in (12, 3, 7, 12, 1)]
    expected = [greedy(model, prompt.ids, [], p.max_tokens) for prompt, p in zip(batch, params, strict=True)]
    for options in ({}, {"use_cache": False}, *({"prefill_tokens": n} for n in (1, 2, 4, 16, 35, 36))):
        tokens, steps, generation = run(model, batch, params, **options)
        assert tokens == expected, options
        assert [len(step.rows) for step in steps] == [5, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2]
        assert {sequence.finish_reason for sequence in generation.sequences} == {"length"}


def test_each_sequence_has_its_own_parameters(model):
    batch = prompts(model)
    plain = [greedy(model, prompt.ids, [], 8) for prompt in batch]
    params = [
        greedy_params(max_tokens=8),
        greedy_params(max_tokens=8, stop_token_ids=(plain[1][3], 1000)),
        SamplingParams(temperature=1.5, seed=3, max_tokens=8),
        greedy_params(max_tokens=8, repetition_penalty=3.0),
        SamplingParams(temperature=1.5, seed=3, max_tokens=8, top_k=1),
    ]
    together, _, generation = run(model, batch, params)
    for index, (prompt, p) in enumerate(zip(batch, params, strict=True)):
        alone, _, _ = run(model, [prompt], [p])
        assert alone[0] == together[index]
    assert together[0] == plain[0] and together[4] == plain[4]
    assert together[1] == plain[1][: plain[1].index(plain[1][3]) + 1]
    assert (generation.sequences[1].finish_reason, generation.sequences[1].stop_reason) == ("stop", plain[1][3])
    assert together[2] != plain[2]
    assert together[3] != plain[3]
    seen = [*batch[3].ids, *together[3]]
    assert len(set(seen)) > len({*batch[3].ids, *plain[3]}) or len(set(together[3])) == 8


def test_ended_sequences_are_not_computed(model, monkeypatch):
    rows = []
    whole = model.forward_packed

    def spy(embeds, positions, packing, cache, wanted):
        rows.append((len(embeds), len(packing.q_lens)))
        return whole(embeds, positions, packing, cache, wanted)

    monkeypatch.setattr(model, "forward_packed", spy)
    params = [greedy_params(max_tokens=n) for n in (6, 1, 4, 2, 1)]
    generation = Generation(model, prompts(model), params)
    blocks, held = generation._core.scheduler.blocks, []
    for _ in generation:
        held.append(blocks.num_blocks - blocks.num_free)
    assert rows[0] == (sum(LENGTHS), 5)
    assert rows[1:] == [(3, 3), (2, 2), (2, 2), (1, 1), (1, 1)]
    assert held == [4, 3, 3, 1, 1, 0]  # their part of the cache is given back


def test_copies_share_the_prompt(model, monkeypatch):
    rows = []
    whole = model.forward_packed
    monkeypatch.setattr(model, "forward_packed", lambda embeds, *rest: rows.append(len(embeds)) or whole(embeds, *rest))
    batch = prompts(model)[:2]
    params = [
        SamplingParams(temperature=2.0, seed=1, max_tokens=6),
        SamplingParams(temperature=2.0, seed=2, max_tokens=6),
    ]
    tokens, _, _ = run(model, batch, params, copies=3)
    assert rows == [6, *[6] * 5]
    assert len({tuple(row) for row in tokens}) == 6
    assert tokens[:3] == run(model, batch[:1], params[:1], copies=3)[0]
    assert tokens[3:4] == run(model, batch[1:], params[1:])[0]
    assert tokens == run(model, batch, params, copies=3, use_cache=False)[0]


def test_finish_and_what_a_step_says(model):
    generation = Generation(model, prompts(model)[:3], [greedy_params()] * 3)
    first = generation.step()
    assert first.rows == [0, 1, 2] and first.scores.shape == first.logits.shape == (3, 96)
    assert (
        first.scores.argmax(-1).tolist() == first.tokens == [sequence.new_ids[0] for sequence in generation.sequences]
    )
    generation.finish(1)
    assert generation.step().rows == generation.running == [0, 2]
    generation.finish(1, "length")
    assert [sequence.finish_reason for sequence in generation.sequences] == [None, "stop", None]
    assert [sequence.length for sequence in generation.sequences] == [7, 2, 19]


def test_finished_before_the_first_step(model):
    generation = Generation(model, prompts(model)[:3], [greedy_params(max_tokens=4)] * 3)
    generation.finish(1)
    steps = list(generation)
    assert [step.rows for step in steps] == [[0, 2]] * 4
    expected = [greedy(model, prompt.ids, [], 4) for prompt in prompts(model)[:3]]
    assert [sequence.new_ids for sequence in generation.sequences] == [expected[0], [], expected[2]]


def test_the_context_ends_a_sequence(model):
    assert context_length(model.text_config) == 64
    tokens, _, generation = run(
        model, prompts(model, (60, 3)), [greedy_params(max_tokens=10), greedy_params(max_tokens=10)]
    )
    assert [len(row) for row in tokens] == [4, 10]
    assert generation.sequences[0].finish_reason == "length"
    with pytest.raises(PromptError, match=r"prompt 1 has 64 tokens.*64"):
        run(model, prompts(model, (3, 64)), [greedy_params()] * 2)
    with pytest.raises(PromptError, match="prompt 0 is empty"):
        run(model, prompts(model, (0,)), [greedy_params()])
    windowed = random_llava(llava_dict(text={"sliding_window": 8}))
    tokens, _, _ = run(windowed, prompts(windowed, (5,)), [greedy_params()])
    assert [len(row) for row in tokens] == [3]


def test_the_cache_grows_past_the_room_made_at_first(model, monkeypatch):
    monkeypatch.setattr("pixtral.generation.loop.ROOM", 2)
    batch, params = prompts(model)[:3], [greedy_params(max_tokens=20)] * 3
    assert run(model, batch, params)[0] == [greedy(model, prompt.ids, [], 20) for prompt in batch]
    copies = run(model, batch, params, copies=2)[0]
    assert copies[::2] == copies[1::2] == run(model, batch, params)[0]


def test_stop_strings_need_a_tokenizer(model):
    with pytest.raises(GenerationError, match="tokenizer"):
        Generation(model, prompts(model)[:1], [greedy_params(stop=("x",))])


def test_gradients_are_off_and_state_is_kept(model):
    batch = [Prompt(prompt.embeds.clone().requires_grad_(), prompt.ids) for prompt in prompts(model)[:1]]
    model.train()
    try:
        step = Generation(model, batch, [greedy_params()]).step()
        assert not step.scores.requires_grad and torch.is_grad_enabled() and model.training
    finally:
        model.eval()
