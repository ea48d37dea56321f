"""The decoder's forward(): the cache, rows of logits, empty input, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import llava_dict, randomize

from pixtral.configuration import MistralConfig
from pixtral.errors import PromptError
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.padded import new_cache
from pixtral.ops.kv_cache import KVCache, Packing


def decoder(**fields: Any) -> MistralForCausalLM:
    model = MistralForCausalLM(MistralConfig.from_dict(llava_dict(text=fields)["text_config"]))
    randomize(model)
    return model.eval().requires_grad_(False)


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_packed_and_padded_agree() -> None:
    model = decoder()
    padded = model(IDS).logits
    embeds = model.embed(IDS.flatten())
    hidden = model.forward_packed(embeds, torch.arange(4).repeat(2), Packing.full([4, 4], causal=True))
    torch.testing.assert_close(model.logits(hidden), padded.flatten(0, 1))
    assert model.decoder is model.model and model.text_config is model.config


@pytest.mark.parametrize("rows", [[0, 3, 6], [5], []])
def test_only_the_wanted_rows_are_finished(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what they are among all rows, and the cache is as full as with all."""
    model, seen = decoder(), []
    mlp = model.model.layers[-1].mlp
    assert isinstance(mlp, torch.nn.Module)
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    embeds, positions = model.embed(IDS.flatten()[:7]), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    hidden, keys = [], []
    for wanted in (None, torch.tensor(rows, dtype=torch.int64)):
        cache = new_cache(model.config, 2, 4, embeds)
        packing = cache.packing([4, 3])
        hidden.append(model.forward_packed(embeds, positions, packing, cache, wanted))
        keys.append(cache.layers[-1].keys[packing.slots])
    torch.testing.assert_close(hidden[1], hidden[0][rows])
    assert keys[1].equal(keys[0])
    assert seen == [7, len(rows)]


def test_later_tokens_are_not_seen() -> None:
    model, changed = decoder(), IDS.clone()
    changed[:, 2] = 50
    before, after = model(IDS).logits, model(changed).logits
    assert before[:, :2].equal(after[:, :2]) and not before[:, 2:].equal(after[:, 2:])


def test_who_keeps_a_cache() -> None:
    model = decoder()
    assert isinstance(model(IDS).past_key_values, KVCache)
    assert model(IDS, use_cache=False).past_key_values is None
    model.train()
    assert model(IDS).past_key_values is None, "nobody reads it in training"
    assert isinstance(model(IDS, use_cache=True).past_key_values, KVCache)
    with torch.no_grad():
        assert isinstance(model(IDS).past_key_values, KVCache)
    assert decoder(use_cache=False)(IDS).past_key_values is None


def test_a_cache_is_continued() -> None:
    model = decoder()
    cache = model(IDS[:, :1]).past_key_values
    output = model(IDS[:, 1:3], past_key_values=cache)
    assert output.past_key_values is cache and cache.lengths == [3, 3]
    output = model(IDS[:, 3:], past_key_values=cache, use_cache=False)
    assert output.past_key_values is None
    torch.testing.assert_close(output.logits, model(IDS).logits[:, 3:])
    cache.crop([1, 1])
    torch.testing.assert_close(model(IDS[:, 1:], past_key_values=cache).logits, model(IDS).logits[:, 1:])


def test_a_cache_of_ones_own() -> None:
    model = decoder()
    cache = new_cache(model.config, 2, 0, model.embed(IDS[0]))
    assert cache.layers[0].keys.shape == (0, 2, 16) and len(cache.layers) == 3
    torch.testing.assert_close(model(IDS, past_key_values=cache).logits, model(IDS).logits)


def test_only_the_wanted_rows_reach_the_output_layer() -> None:
    model, seen = decoder(), []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    for keep, expected in ((1, 2), (0, 8), (torch.tensor([0, 2]), 4), (IDS > 10, 2)):
        model(IDS, logits_to_keep=keep)
        assert seen.pop() == expected


def test_empty_prompts_and_batches() -> None:
    model = decoder()
    assert model(IDS[:, :0]).logits.shape == (2, 0, 96)
    assert model(IDS[:0]).logits.shape == (0, 4, 96)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    output = model(IDS, mask)
    assert not output.logits[0].any() and output.past_key_values.lengths == [0, 4]
    torch.testing.assert_close(output.logits[1:], model(IDS[1:]).logits)
    assert model(IDS[:, :1], past_key_values=output.past_key_values).past_key_values.lengths == [1, 5]


def test_a_sliding_window_is_not_passed_over_in_silence() -> None:
    model = decoder(sliding_window=3)
    assert model(IDS[:, :3]).logits.shape == (2, 3, 96)
    with pytest.raises(PromptError, match=r"4 tokens exceed the sliding window of 3 .*set sliding_window to null"):
        model(IDS)
    with pytest.raises(PromptError, match="4 tokens exceed"):
        model(IDS[:, 3:], past_key_values=model(IDS[:, :3]).past_key_values)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 4, 40)}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": IDS[0]}, r"\(batch, tokens\)"),
        ({"inputs_embeds": torch.zeros(4, 40)}, r"shape \(4, 40\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 3)}, r"attention_mask of shape \(2, 3\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 6)}, r"found \[2, 2\] earlier tokens.*holds \[0, 0\]"),
        ({"input_ids": IDS, "position_ids": torch.zeros(2, 3)}, r"position_ids of shape \(2, 3\)"),
        ({"input_ids": IDS, "labels": IDS[:, :2]}, r"labels of shape \(2, 2\)"),
        ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, "no logits_to_keep beside labels"),
    ],
)
def test_input_that_is_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        decoder()(**inputs)


def test_a_cache_of_another_batch() -> None:
    model = decoder()
    with pytest.raises(PromptError, match="holds 2 sequences, the input 1"):
        model(IDS[:1], past_key_values=model(IDS).past_key_values)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="cache_positions"):
        decoder()(IDS, cache_positions=1)


def test_dropout_acts_in_training_alone() -> None:
    model = decoder(attention_dropout=0.5)
    assert model(IDS).logits.equal(model(IDS).logits)
    model.train()
    assert not model(IDS, use_cache=False).logits.equal(model(IDS, use_cache=False).logits)
