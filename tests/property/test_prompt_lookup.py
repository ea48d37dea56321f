"""Prompt lookup changes nothing but the number of forward passes: whatever the batch, the settings and the draws."""

from __future__ import annotations

import functools
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from random_models import llava_dict, random_llava

from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.generation.loop import Generation, Prompt
from pixtral.models.llava import LlavaForConditionalGeneration

WORDS = 24


@functools.cache
def model_of(seed: int) -> LlavaForConditionalGeneration:
    """Few words, so that texts repeat; a short context, so that some reach its end."""
    text = {"vocab_size": WORDS, "max_position_embeddings": 40, "hidden_size": 24, "num_hidden_layers": 1}
    return random_llava(llava_dict(text=text), seed).requires_grad_(False)


class Letters:
    """A tokenizer for stop strings: every token is a letter."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("a") + token) for token in token_ids)


sampling = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.7]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 1.4]),
    seed=st.none() | st.integers(0, 3),
    max_tokens=st.none() | st.integers(1, 24),
    min_tokens=st.integers(0, 9),
    stop=st.sampled_from([(), (), ("ab",), ("c", "gh")]),
    stop_token_ids=st.sampled_from([(), (), (3,), (5, 9)]),
)
# words, and pieces of the text so far once more
texts = st.lists(st.integers(0, WORDS - 1) | st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12)


def spelt_out(pieces: list[Any]) -> list[int]:
    ids = [1]
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else ids[piece[0] : piece[0] + piece[1]]
    return ids[:32]


def forbid(scores: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    """A processor that looks at all that was said: no word three times within ten."""
    scores = scores.clone()
    for row, said in zip(scores, ids, strict=True):
        for word in set(said[-10:]):
            if said[-10:].count(word) > 2:
                row[word] = -100.0
    return scores


@given(
    st.lists(st.tuples(texts, sampling), min_size=1, max_size=3),
    st.integers(1, 2),
    st.builds(PromptLookup, st.integers(1, 9), st.integers(1, 3)),
    st.sampled_from([True, True, False]),
    st.booleans(),
    st.sampled_from([None, "generator", "global"]),
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 7)), max_size=2),
    st.integers(0, 2),
    st.sampled_from([None, None, "bf16", "int8"]),
)
@examples(80)
def test_with_is_without(batch, copies, prompt_lookup, use_cache, edited, shared, ended, seed, kv_cache) -> None:
    """`ended` is what a stopping criterion does: after so many steps a sequence is at its end."""
    model = model_of(seed)
    prompts = [Prompt(model.embed(torch.tensor(ids)), tuple(ids), 2) for ids in (spelt_out(text) for text, _ in batch)]

    def run(lookup: PromptLookup | None) -> tuple[list[Any], list[Any], list[Any]]:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4) if shared == "generator" else None
        seen: list[Any] = []

        def edit(scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
            seen.append((rows, [list(generation.sequences[row].new_ids) for row in rows]))
            return forbid(scores, seen[-1][1])

        generation = Generation(
            model,
            prompts,
            [params for _, params in batch],
            copies=copies,
            tokenizer=Letters(),
            generator=generator,
            edit=edit if edited else None,
            use_cache=use_cache,
            kv_cache=kv_cache,
            prompt_lookup=lookup,
        )
        steps = []
        for step in generation:
            steps.append(step)
            for after, row in ended:
                if after == len(steps) and row < len(generation.sequences):
                    generation.finish(row)
        ends = [(s.new_ids, s.finish_reason, s.stop_reason, s.length) for s in generation.sequences]
        return steps, ends, seen

    steps, ends, seen = run(None)
    ahead_steps, ahead_ends, ahead_seen = run(prompt_lookup)
    assert ahead_ends == ends and ahead_seen == seen
    assert [(step.rows, step.tokens) for step in ahead_steps] == [(step.rows, step.tokens) for step in steps]
    for step, other in zip(ahead_steps, steps, strict=True):
        # where a sum differs in its last bit, a rounded key may differ by a step
        close = {None: 1e-4, "bf16": 0.03, "int8": 0.03}[kv_cache]
        torch.testing.assert_close(step.logits, other.logits, rtol=close, atol=close)
