"""Prompt lookup in the loop: fewer forward passes, and nobody can tell from the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import llava_dict, random_llava

from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.errors import GenerationError
from pixtral.generation.loop import Generation, Prompt
from pixtral.ops.native.library import kernels_if_built

STORY = list(range(20, 60))
LOUD = 99.0


@pytest.fixture(scope="module")
def model():
    return random_llava(llava_dict(text={"max_position_embeddings": 128}))


@pytest.fixture
def passes(model, monkeypatch):
    """Rows of each sequence in every forward pass."""
    seen = []
    whole = model.forward_packed

    def spy(embeds, positions, packing, cache, wanted):
        assert len(embeds) == len(positions) == sum(packing.q_lens)
        seen.append(packing.q_lens)
        return whole(embeds, positions, packing, cache, wanted)

    monkeypatch.setattr(model, "forward_packed", spy)
    return seen


def prompt(model, ids, image_token=None):
    with torch.no_grad():
        return Prompt(model.embed(torch.tensor(ids)), tuple(ids), image_token)


def greedy(**kwargs):
    return SamplingParams(temperature=0, **kwargs)


class Aloud:
    """Edits scores such that each sequence says its script, whatever the model thinks."""

    def __init__(self, *scripts):
        self.scripts, self.generation = scripts, None

    def __call__(self, scores, rows):
        scores = scores.clone()
        for place, row in enumerate(rows):
            said = len(self.generation.sequences[row].new_ids)
            scores[place, self.scripts[row][said]] += LOUD
        return scores


def read_aloud(model, prompts, scripts, *, params=None, **kwargs):
    edit = Aloud(*scripts)
    params = params or [greedy(max_tokens=len(script)) for script in scripts]
    edit.generation = Generation(model, prompts, params, edit=edit, **kwargs)
    return edit.generation


def same(steps, others):
    """Steps that nobody can tell apart, but for the last bits of float32."""
    assert [step.rows for step in steps] == [step.rows for step in others]
    assert [step.tokens for step in steps] == [step.tokens for step in others]
    for step, other in zip(steps, others, strict=True):
        torch.testing.assert_close(step.logits, other.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(step.scores, other.scores, rtol=1e-4, atol=1e-4)


def test_a_story_read_aloud_takes_a_pass_for_many_tokens(model, passes):
    prompts = [prompt(model, [1, *STORY, 2])]
    plain = list(read_aloud(model, prompts, [STORY]))
    assert [sum(q_lens) for q_lens in passes] == [42, *[1] * 39]
    passes.clear()
    steps = list(read_aloud(model, prompts, [STORY], prompt_lookup=PromptLookup(10)))
    # behind the newest token 1, 7 and 10 more, as trust grows; at the end no more than there is room for
    assert [sum(q_lens) for q_lens in passes] == [42, 2, 8, 11, 11, 7]
    same(steps, plain)
    recomputed = list(read_aloud(model, prompts, [STORY], prompt_lookup=PromptLookup(10), use_cache=False))
    same(recomputed, plain)


def test_sequences_that_copy_different_places_share_their_passes(model, passes):
    prompts = [prompt(model, ids) for ids in ([1, *STORY, 2], [3, 4, *STORY[::-1], 2, 5], [7, *STORY[5:35]])]
    scripts = [STORY, [70, 71, 72, *STORY[::-1]], [*STORY[9:35], 80, 81, 82]]
    plain = list(read_aloud(model, prompts, scripts))
    passes.clear()
    same(list(read_aloud(model, prompts, scripts, prompt_lookup=PromptLookup(10))), plain)
    assert len(passes) == 11 < len(plain) / 3
    assert (11, 11, 4) in passes  # whoever has drafts left gets more of them in a pass that another needs


def test_rejected_drafts_leave_no_trace(model, passes):
    words = [20, 21, 22, 23, 24, 25, 26, 27]
    prompts = [prompt(model, [1, *words, 2])]
    script = [20, 21, 22, 23, 24, 90, 25, 26, 91, 20, 21, 22, 92, 93, 24, 25, 26, 27, 2, 1]
    plain = list(read_aloud(model, prompts, [script]))
    passes.clear()
    same(list(read_aloud(model, prompts, [script], prompt_lookup=PromptLookup(5))), plain)
    assert len(passes) < len(script) - 5


def test_an_end_inside_a_draft(model, passes):
    prompts = [prompt(model, [1, *STORY, 2]), prompt(model, [1, *STORY[::-1], 2])]
    scripts = [[*STORY[:15], 0, *STORY], [*STORY[::-1], *STORY]]
    params = [greedy(stop_token_ids=(0,)), greedy(stop_token_ids=(STORY[8],), min_tokens=3)]
    results = []
    for lookup in (None, PromptLookup(10)):
        generation = read_aloud(model, prompts, scripts, params=params, prompt_lookup=lookup)
        results.append((list(generation), generation))
    (plain, first), (steps, second) = results
    same(steps, plain)
    for generation in (first, second):
        assert [len(s.new_ids) for s in generation.sequences] == [16, 32]
        assert [(s.finish_reason, s.stop_reason) for s in generation.sequences] == [("stop", 0), ("stop", STORY[8])]


def test_nothing_is_run_behind_an_end(model, passes):
    prompts = [prompt(model, [1, *STORY[:15], 0, *STORY[15:], 2])]
    script, params = [*STORY[:15], 0, 1, 1], [greedy(stop_token_ids=(0,))]
    generation = read_aloud(model, prompts, [script], params=params, prompt_lookup=PromptLookup(10))
    assert len(list(generation)) == 16
    assert sum(map(sum, passes[1:])) == 15  # the story once, and not the end


def test_one_that_is_ended_from_outside_while_it_is_ahead(model, passes):
    prompts = [prompt(model, [1, *STORY, 2])] * 3
    generations = [read_aloud(model, prompts, [STORY] * 3, prompt_lookup=lookup) for lookup in (None, PromptLookup(10))]
    for generation in generations:
        for _ in range(9):
            generation.step()
        generation.finish(1)
        passes.clear()
        for _ in range(10):
            generation.step()
        generation.finish(0)
    assert passes and {len(q_lens) for q_lens in passes} == {2}  # no row for what has ended
    same(list(generations[1]), list(generations[0]))
    assert [len(s.new_ids) for s in generations[1].sequences] == [19, 9, 40]


def test_the_context_and_the_maximum_end_drafts(model, passes):
    story = list(range(20, 80))
    prompts = [prompt(model, [1, *story, 2])]
    for params, length in ((greedy(), 66), (greedy(max_tokens=23), 23)):
        script = [*story, *story]
        plain = list(read_aloud(model, prompts, [script], params=[params]))
        passes.clear()
        same(list(read_aloud(model, prompts, [script], params=[params], prompt_lookup=PromptLookup(50))), plain)
        assert len(plain) == length
        assert sum(map(sum, passes[1:])) <= length + 1  # every draft came true, and none went past the end


def test_an_error_while_a_token_is_chosen_can_be_tried_again(model):
    prompts = [prompt(model, [1, *STORY, 2])]
    plain = list(read_aloud(model, prompts, [STORY]))
    generation = read_aloud(model, prompts, [STORY], prompt_lookup=PromptLookup(10))
    honest, calls = generation.edit, []

    def failing(scores, rows):
        calls.append(rows)
        if len(calls) % 3 == 0:
            raise RuntimeError("once in a while")
        return honest(scores, rows)

    generation.edit = failing
    steps = []
    while generation.running:
        try:
            steps.append(generation.step())
        except RuntimeError:
            continue
    same(steps, plain)


def test_copies_go_their_own_ways(model):
    prompts = [prompt(model, [1, *STORY[:9], 2]), prompt(model, [1, *STORY[4:20], 2])]
    params = [SamplingParams(temperature=0.3, seed=seed, max_tokens=40, repetition_penalty=0.4) for seed in (1, 2)]
    plain = list(Generation(model, prompts, params, copies=3))
    same(list(Generation(model, prompts, params, copies=3, prompt_lookup=PromptLookup(6))), plain)
    assert len({tuple(step.tokens) for step in plain}) > 20


def test_image_tokens_are_not_drafted(model, passes):
    grid = [10, 10, 12, 10, 10, 13]
    ids = [1, *grid, 50, 51, 52, *grid, 60, 61]
    script = [50, 51, 52, *grid, 60, 61, 10, 10, 12, 10]
    plain = list(read_aloud(model, [prompt(model, ids, 10)], [script]))
    passes.clear()
    prompts, embedded, whole = [prompt(model, ids, 10)], [], model.embed
    try:
        model.embed = lambda ids, *rest: embedded.append(ids.tolist()) or whole(ids, *rest)
        same(list(read_aloud(model, prompts, [script], prompt_lookup=PromptLookup(9))), plain)
    finally:
        del model.embed
    assert any(len(one) > 1 for one in embedded)
    assert not any({10, 12, 13}.intersection(one[1:]) for one in embedded)


def test_prompts_without_ids_are_drafted_from_the_answer(model, passes):
    embeds = prompt(model, [1, 2, 3]).embeds
    script = STORY[:6] * 6
    plain = list(read_aloud(model, [Prompt(embeds)], [script]))
    passes.clear()
    same(list(read_aloud(model, [Prompt(embeds)], [script], prompt_lookup=PromptLookup(10))), plain)
    assert len(passes) < 15


def test_unknown_caches(model):
    for wrong in ("int3", "bfloat16", torch.int8, 8, []):
        with pytest.raises(GenerationError, match=r"kv_cache is .*expected 'bf16', 'int8', or None"):
            Generation(model, [prompt(model, [1])], [greedy()], kv_cache=wrong)


@pytest.mark.parametrize(("kind", "dtype", "close"), [("bf16", torch.bfloat16, 0.05), ("int8", torch.int8, 0.1)])
def test_the_number_format_of_the_cache(model, kind, dtype, close):
    prompts = [prompt(model, [1, *STORY, 2])]
    (plain,) = Generation(model, prompts, [greedy(max_tokens=1)])
    generation = Generation(model, prompts, [greedy(max_tokens=9)], kv_cache=kind)
    step = generation.step()
    runner: Any = generation._core.runner
    layers = runner.cache.layers
    assert {x.dtype for layer in layers for x in (layer.keys, layer.values)} == {dtype}
    torch.testing.assert_close(step.logits, plain.logits, rtol=close, atol=close)
    assert not step.logits.equal(plain.logits)


def test_every_way_on_a_cache_in_8_bits(model, monkeypatch):
    """Growing, copies, sequences that end before others, drafts that are taken back: as the whole at once gives it."""
    prompts = [prompt(model, [1, *STORY[:9], 2]), prompt(model, [1, *STORY[4:20], 2]), prompt(model, [5])]
    scripts = [[*STORY[:8], 90, *STORY[:20]], [*STORY[4:9], *STORY[12:20]], [7, 8, 9] * 9]
    plain = list(read_aloud(model, prompts, scripts, kv_cache="int8"))
    monkeypatch.setattr("pixtral.generation.loop.ROOM", 2)
    for options in ({}, {"prompt_lookup": PromptLookup(5)}, {"prefill_tokens": 4, "prompt_lookup": PromptLookup(9, 1)}):
        steps = list(read_aloud(model, prompts, scripts, kv_cache="int8", **options))
        assert [(step.rows, step.tokens) for step in steps] == [(step.rows, step.tokens) for step in plain]
        for step, other in zip(steps, plain, strict=True):
            # where a sum differs in its last bit a level may differ by one
            torch.testing.assert_close(step.logits, other.logits, rtol=0.02, atol=0.02)
    params = [SamplingParams(temperature=0.5, seed=seed, max_tokens=20) for seed in (1, 2, 3)]
    copies = Generation(model, prompts, params, copies=2, kv_cache="int8", prompt_lookup=PromptLookup(4))
    alone = Generation(model, prompts[1:2], params[1:2], kv_cache="int8")
    assert [list(steps)[-1].rows for steps in (copies, alone)] == [list(range(6)), [0]]
    assert copies.sequences[2].new_ids == alone.sequences[0].new_ids


SAME_BITS = kernels_if_built() is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.skipif(not SAME_BITS, reason="PyTorch's own sums depend on the number of rows")
@pytest.mark.parametrize("kind", [None, "int8"])
def test_in_bfloat16_not_a_bit_differs(kind):
    """Choices in bfloat16 are often close: where drafts are checked, every row must be what it is alone."""
    text = {"hidden_size": 1024, "intermediate_size": 2048, "head_dim": 64, "num_hidden_layers": 2, "vocab_size": 500}
    wide = random_llava(llava_dict(text=text)).bfloat16().requires_grad_(False)
    prompts = [prompt(wide, [1, *STORY * 8, 2]), prompt(wide, [1, *STORY[::-1], 2])]
    scripts = [[*STORY[:9], 90, *STORY[:20]], [*STORY[::-1], 7]]
    runs = [
        list(read_aloud(wide, prompts[:count], scripts[:count], kv_cache=kind, prompt_lookup=lookup))
        for count in (1, 2)
        for lookup in (None, PromptLookup(10))
    ]
    for plain, steps in (runs[:2], runs[2:]):
        assert len(steps) == len(plain)
        assert all(step.logits.equal(other.logits) for step, other in zip(steps, plain, strict=True))
    # and the first sequence alone is the first of two
    assert all(step.logits[0].equal(other.logits[0]) for step, other in zip(runs[0], runs[2], strict=False))
