"""generate(): arguments, inputs, outputs, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from oracle import greedy
from random_models import IMG, MIXED, PATCH, llava_dict, random_batch, random_llava

from pixtral.configuration import GenerationConfig
from pixtral.errors import ConfigError, GenerationError, ImageError, PromptError, UnknownArgument
from pixtral.images.pixels import crop_images
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM

NEW = 10


@pytest.fixture(scope="module")
def model():
    return random_llava(llava_dict(text={"eos_token_id": None, "pad_token_id": 0, "bos_token_id": None}))


@pytest.fixture
def batch(model):
    return random_batch(model.config, MIXED)


def alone(batch, index):
    """One prompt of a batch without padding, with its own images."""
    counts = [len(images) for images in MIXED]
    start = sum(counts[:index])
    real = batch.attention_mask[index].bool()
    inputs = {"input_ids": batch.input_ids[index, real][None]}
    if counts[index]:
        these = slice(start, start + counts[index])
        inputs |= {"pixel_values": batch.pixel_values[these], "image_sizes": batch.image_sizes[these]}
    return inputs


def new_tokens(output, batch):
    return output[:, batch.input_ids.shape[1] :].tolist()


# --- the same tokens by every way


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_is_alone_is_the_oracle(model, side):
    batch = random_batch(model.config, MIXED, side=side)
    together = new_tokens(model.generate(**batch.inputs(), max_new_tokens=NEW), batch)
    images = crop_images(batch.pixel_values, batch.image_sizes)
    for index, grids in enumerate(MIXED):
        inputs = alone(batch, index)
        single = model.generate(**inputs, max_new_tokens=NEW)
        mine, images = images[: len(grids)], images[len(grids) :]
        expected = greedy(model, inputs["input_ids"][0].tolist(), mine, NEW)
        assert single[0].tolist() == [*inputs["input_ids"][0].tolist(), *expected]
        assert together[index] == expected
    for other in ({"use_cache": False}, {"prefill_chunk_size": 7}):
        assert new_tokens(model.generate(**batch.inputs(), max_new_tokens=NEW, **other), batch) == together


def test_a_seed_makes_samples_independent_of_neighbours(model, batch):
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 0, "max_new_tokens": NEW, "num_return_sequences": 2}
    together = new_tokens(model.generate(**batch.inputs(), seed=5, **settings), batch)
    assert together == new_tokens(model.generate(**batch.inputs(), seed=5, **settings), batch)
    assert together != new_tokens(model.generate(**batch.inputs(), seed=6, **settings), batch)
    for index in range(3):
        inputs = alone(batch, index)
        single = model.generate(**inputs, seed=5, **settings)[:, inputs["input_ids"].shape[1] :]
        assert single.tolist() == together[2 * index : 2 * index + 2]
        assert single[0].tolist() != single[1].tolist()
    before = torch.get_rng_state()
    model.generate(**batch.inputs(), seed=5, **settings)
    assert torch.get_rng_state().equal(before)


def test_a_generator_makes_samples_repeatable(model, batch):
    settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": NEW}
    first, second, third = (
        model.generate(**batch.inputs(), generator=torch.Generator().manual_seed(seed), **settings)
        for seed in (1, 1, 2)
    )
    assert first.equal(second) and not first.equal(third)


# --- what is computed


def test_tower_and_prompt_once_one_row_of_logits_per_sequence(model, batch, monkeypatch):
    calls: dict[str, Any] = {"tower": 0, "rows": []}
    hooks = [
        model.model.vision_tower.patch_conv.register_forward_hook(
            lambda module, args, output: calls.__setitem__("tower", calls["tower"] + 1)
        ),
        model.lm_head.register_forward_hook(lambda module, args, output: calls["rows"].append(len(args[0]))),
    ]
    packed = []
    whole = model.forward_packed
    monkeypatch.setattr(model, "forward_packed", lambda embeds, *a: packed.append(len(embeds)) or whole(embeds, *a))
    try:
        model.generate(**batch.inputs(), max_new_tokens=4, do_sample=True, num_return_sequences=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls["tower"] <= 4  # images; each of them once, whether or not they are convolved together
    assert calls["rows"] == [3, 6, 6, 6]
    assert packed == [int(batch.attention_mask.sum()), 6, 6, 6]


def test_encode_images_called_once_with_every_image(model, batch, monkeypatch):
    seen = []
    whole = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images: seen.append(len(images)) or whole(images))
    model.generate(**batch.inputs(), max_new_tokens=3)
    assert seen == [4]


# --- settings


def test_arguments_over_config_over_model(model, batch):
    model.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    try:
        assert len(new_tokens(model.generate(**batch.inputs()), batch)[0]) == 3
        config = GenerationConfig(max_new_tokens=5)
        assert len(new_tokens(model.generate(**batch.inputs(), generation_config=config), batch)[0]) == 5
        output = model.generate(**batch.inputs(), generation_config={"max_new_tokens": 5}, max_new_tokens=2)
        assert len(new_tokens(output, batch)[0]) == 2
        first = int(output[0, -2])
        model.generation_config.eos_token_id = first
        assert len(new_tokens(model.generate(**alone(batch, 0)), batch)[0]) < 3
        off = model.generate(**alone(batch, 0), eos_token_id=None)
        assert off.shape[1] == alone(batch, 0)["input_ids"].shape[1] + 3
    finally:
        del model.generation_config
    assert model.default_generation_config() == GenerationConfig(pad_token_id=0)


def test_max_length_counts_the_prompt_and_max_new_tokens_wins(model, batch):
    length = batch.input_ids.shape[1]
    assert model.generate(**batch.inputs(), max_length=length + 2).shape[1] == length + 2
    with pytest.warns(UserWarning, match=r"max_length=\d+ without effect: max_new_tokens=4 goes first"):
        ids = model.generate(**batch.inputs(), max_length=length + 2, max_new_tokens=4)
    assert ids.shape[1] == length + 4
    with pytest.raises(GenerationError, match=f"{length} tokens.*max_length is {length}"):
        model.generate(**batch.inputs(), max_length=length)


def test_twenty_new_tokens_and_a_warning(model, batch):
    with pytest.warns(UserWarning, match="max_new_tokens") as caught:
        output = model.generate(**batch.inputs())
    assert output.shape[1] == batch.input_ids.shape[1] + 20
    assert caught[0].filename == __file__


def test_settings_without_effect_warn(model, batch):
    with pytest.warns(UserWarning, match="temperature, top_p without effect") as caught:
        model.generate(**batch.inputs(), max_new_tokens=1, temperature=0.7, top_p=0.9)
    assert caught[0].filename == __file__
    model.generate(**batch.inputs(), max_new_tokens=1, temperature=0.0)
    with pytest.warns(UserWarning, match="at least 5 and at most 2"):
        model.generate(**batch.inputs(), max_new_tokens=2, min_new_tokens=5)


def test_numbers_of_numpy(model, batch):
    settings = {"do_sample": True, "seed": 1, "eos_token_id": [5]}
    plain = model.generate(**batch.inputs(), max_new_tokens=3, temperature=0.5, top_k=9, **settings)
    theirs = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "top_k": np.int32(9)}
    settings["eos_token_id"] = torch.tensor([5])
    assert model.generate(**batch.inputs(), **theirs, **settings).equal(plain)


def test_generation_config_is_honoured_or_refused(tmp_path):
    neutral = {"num_beams": 1, "length_penalty": 1.0, "suppress_tokens": [], "cache_implementation": None}
    origin = {"_from_model_config": True, "transformers_version": "4.45.0", "a_field_of_tomorrow": None}
    config = GenerationConfig.from_dict({"eos_token_id": [2, 4], "top_p": 0.9, **neutral, **origin})
    assert config == GenerationConfig(eos_token_id=[2, 4], top_p=0.9)
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == config
    assert config.to_dict() == {"eos_token_id": [2, 4], "top_p": 0.9}
    for wrong in ({"num_beams": 4}, {"length_penalty": 2.0}, {"a_field_of_tomorrow": 1}, {"suppress_tokens": [3]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GenerationConfig.from_dict(wrong)


def test_neutral_values_of_settings_that_are_not_implemented(model, batch):
    plain = model.generate(**batch.inputs(), max_new_tokens=2)
    neutral = {
        "num_beams": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "assistant_model": None,
        "max_time": None,
    }
    neutral |= {"no_repeat_ngram_size": 0, "output_attentions": False, "position_ids": None, "synced_gpus": None}
    assert model.generate(**batch.inputs(), max_new_tokens=2, **neutral).equal(plain)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"max_new_token": 3}, UnknownArgument, "did you mean 'max_new_tokens'"),
        ({"image": 3}, UnknownArgument, "image"),
        ({"num_beams": 4}, GenerationError, r"num_beams=4 is not implemented; only greedy"),
        ({"num_beams": True}, GenerationError, r"num_beams"),
        ({"assistant_model": "m"}, GenerationError, "assistant_model"),
        ({"no_repeat_ngram_size": 2}, GenerationError, "logits_processor"),
        ({"max_time": 1.0}, GenerationError, "stopping_criteria"),
        ({"past_key_values": 1}, GenerationError, "whole prompt"),
        ({"position_ids": 1}, GenerationError, "attention_mask"),
        ({"max_new_tokens": 0}, GenerationError, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.0}, GenerationError, "max_new_tokens is 2.0"),
        ({"min_new_tokens": -1}, GenerationError, "min_new_tokens is -1"),
        ({"temperature": 0.0, "do_sample": True}, GenerationError, "do_sample=False"),
        ({"do_sample": 1}, GenerationError, "do_sample is 1"),
        ({"top_p": 2.0}, GenerationError, "top_p is 2.0"),
        ({"num_return_sequences": 2}, GenerationError, "do_sample=True"),
        ({"num_return_sequences": 0, "do_sample": True}, GenerationError, "num_return_sequences is 0"),
        ({"eos_token_id": "</s>"}, GenerationError, "eos_token_id"),
        ({"eos_token_id": [1, -1]}, GenerationError, "eos_token_id"),
        ({"pad_token_id": [1, 2]}, GenerationError, "pad_token_id"),
        ({"stop_strings": "x"}, GenerationError, "need the tokenizer, found none"),
        ({"stop_strings": "x", "tokenizer": 1}, GenerationError, "found a int"),
        ({"stop_strings": [""], "tokenizer": 1}, GenerationError, "stop"),
        ({"seed": "a"}, GenerationError, "seed"),
        ({"generator": 3}, GenerationError, "torch.Generator"),
        ({"seed": 3, "generator": torch.Generator()}, GenerationError, "seed and a generator"),
        ({"generation_config": 3}, GenerationError, "generation_config is int"),
        ({"generation_config": {"num_beams": 2}}, ConfigError, "num_beams"),
        ({"generation_config": {"topk": 2}}, ConfigError, "did you mean 'top_k'"),
        ({"logits_processor": 3}, GenerationError, "logits_processor holds a int"),
        ({"stopping_criteria": [int]}, GenerationError, "the class int"),
        ({"logits_processor": lambda ids, scores: scores[:1]}, GenerationError, "logits_processor returned"),
        ({"logits_processor": lambda ids, scores: scores * float("nan")}, GenerationError, "NaN"),
    ],
)
def test_refused_settings(model, batch, wrong, error, words):
    with pytest.raises(error, match=words):
        model.generate(**{**batch.inputs(), "max_new_tokens": 3, **wrong})


# --- inputs


def bad_inputs():
    def change(**new):
        return lambda inputs: {**inputs, **new}

    return {
        "a list": (change(input_ids=[[1, 2]]), PromptError, "input_ids is a list"),
        "one axis": (lambda i: {"input_ids": i["input_ids"][0]}, PromptError, r"\(1, n\)"),
        "no prompts": (lambda i: {"input_ids": i["input_ids"][:0]}, PromptError, "at least one prompt"),
        "floats": (lambda i: {"input_ids": i["input_ids"].float()}, PromptError, "torch.float32"),
        "too large": (lambda i: {"input_ids": i["input_ids"] + 90}, PromptError, "vocabulary has 96"),
        "mask shape": (lambda i: {**i, "attention_mask": i["attention_mask"][:, 1:]}, PromptError, "attention_mask"),
        "empty prompt": (lambda i: {**i, "attention_mask": i["attention_mask"] * 0}, PromptError, "prompt 0 is empty"),
        "twice": (lambda i: {**i, "inputs": i["input_ids"]}, GenerationError, "twice"),
        "pixels only": (lambda i: {"pixel_values": i["pixel_values"]}, PromptError, "without a prompt"),
        "nothing": (lambda i: {}, GenerationError, "bos_token_id"),
        "no pixels": (change(pixel_values=None, image_sizes=None), PromptError, r"prompt 1 has 6 \[IMG\].*give 0"),
        "sizes only": (change(pixel_values=None), ImageError, "without pixel_values"),
        "an image less": (
            lambda i: {**i, "pixel_values": i["pixel_values"][:3], "image_sizes": i["image_sizes"][:3]},
            PromptError,
            r"prompt 2 has 19 \[IMG\].*give 9.*25 \[IMG\] tokens in 3 prompts, 3 images of \[6, 1, 8\]",
        ),
        "an image more": (
            lambda i: {
                **i,
                "pixel_values": torch.cat([i["pixel_values"], i["pixel_values"][:1]]),
                "image_sizes": torch.cat([i["image_sizes"], i["image_sizes"][:1]]),
            },
            PromptError,
            "1 images are left over",
        ),
        "another order": (
            lambda i: {**i, "pixel_values": i["pixel_values"].flip(0), "image_sizes": i["image_sizes"].flip(0)},
            PromptError,
            "prompt 1 has 6",
        ),
        "sizes missing": (change(image_sizes=None), PromptError, "prompt 1"),
        "bytes": (lambda i: {**i, "pixel_values": i["pixel_values"].byte()}, ImageError, "uint8"),
        "arrays": (lambda i: {**i, "pixel_values": i["pixel_values"].numpy()}, ImageError, "ndarray"),
        "a nested list": (lambda i: {**i, "pixel_values": [list(i["pixel_values"])]}, ImageError, "a list"),
        "three axes": (lambda i: {**i, "pixel_values": i["pixel_values"][0]}, ImageError, "pixel_values"),
        "size of an image": (change(image_sizes=torch.tensor([[800, 4]] * 4)), ImageError, "800"),
        "sizes of a kind": (change(image_sizes="4x4"), ImageError, "image_sizes is a str"),
        "embeddings": (change(inputs_embeds=torch.zeros(3, 4)), PromptError, r"\(batch, tokens, 40\)"),
        "embeddings beside pixels": (
            lambda i: {**i, "input_ids": None, "inputs_embeds": torch.zeros(*i["input_ids"].shape, 40)},
            PromptError,
            "already hold",
        ),
        "embeddings beside other ids": (change(inputs_embeds=torch.zeros(3, 4, 40)), PromptError, "disagree"),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_refused_inputs(model, batch, name):
    change, error, words = bad_inputs()[name]
    with pytest.raises(error, match=words):
        model.generate(**change(batch.inputs()), max_new_tokens=2)


def test_prompt_longer_than_the_context(batch):
    small = random_llava(llava_dict(text={"max_position_embeddings": 32}))
    with pytest.raises(PromptError, match=r"prompt 2 has 37 tokens, the context of the model is 32"):
        small.generate(**batch.inputs(), max_new_tokens=2)
    ids = torch.arange(20, 48)[None]
    assert small.generate(ids, max_new_tokens=50).shape == (1, 32)


def test_pixels_of_another_dtype_as_a_list_and_without_sizes(model, batch):
    plain = model.generate(**batch.inputs(), max_new_tokens=4)
    images = crop_images(batch.pixel_values, batch.image_sizes)
    as_list = batch.inputs(pixel_values=images)
    assert model.generate(**as_list, max_new_tokens=4).equal(plain)
    assert model.generate(**{**as_list, "image_sizes": None}, max_new_tokens=4).equal(plain)
    assert model.generate(**batch.inputs(pixel_values=batch.pixel_values.double()), max_new_tokens=4).equal(plain)
    with pytest.raises(ImageError, match="image 1"):
        model.generate(**batch.inputs(pixel_values=images, image_sizes=torch.tensor([[8, 12]] * 4)), max_new_tokens=4)
    ids = torch.tensor([[3, *[IMG] * 4, 5]])
    assert model.generate(ids, pixel_values=torch.zeros(1, 3, 2 * PATCH, 2 * PATCH), max_new_tokens=2).shape == (1, 8)


def test_text_model(batch):
    text = MistralForCausalLM(random_llava().config.text_config).eval()
    ids = batch.input_ids[:1]
    assert text.generate(inputs=ids, max_new_tokens=3, eos_token_id=[]).shape == (1, ids.shape[1] + 3)
    with pytest.raises(UnknownArgument, match="reads text only"):
        text.generate(ids, pixel_values=batch.pixel_values, max_new_tokens=3)


def test_defaults_of_a_model(model, batch):
    public = LlavaForConditionalGeneration(model.config).eval()
    public.load_state_dict(model.state_dict())
    public.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    assert public.generate(**batch.inputs()).equal(model.generate(**batch.inputs(), max_new_tokens=3))


# --- outputs


def test_output_by_attribute_name_and_place(model, batch):
    asked = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 4}
    output = model.generate(**batch.inputs(), **asked)
    plain = model.generate(**batch.inputs(), max_new_tokens=4)
    assert output.sequences.equal(plain) and output[0] is output.sequences is output["sequences"]
    assert output.keys() == ["sequences", "scores", "finish_reasons"] and output.logits is None
    assert torch.stack(output.scores, 1).argmax(-1).equal(plain[:, -4:])
    assert output.finish_reasons == ("length",) * 3
    assert model.generate(**batch.inputs(), max_new_tokens=4, output_scores=True).equal(plain)


def test_scores_of_ended_sequences_are_certain_padding(model, batch):
    plain = new_tokens(model.generate(**batch.inputs(), max_new_tokens=6), batch)
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 6}
    output = model.generate(**batch.inputs(), eos_token_id=plain[1][1], **asked)
    assert output.finish_reasons[1] == "stop"
    for values in (output.scores[-1], output.logits[-1]):
        assert values[1].log_softmax(-1)[0] == 0 and values[1].argmax() == 0 and values[1].isfinite().sum() == 1
    assert new_tokens(output.sequences, batch)[1][-1] == 0


class Recorder:
    def __init__(self, fail_at=None):
        self.values, self.ends, self.fail_at = [], 0, fail_at

    def put(self, value):
        assert self.ends == 0
        self.values.append(value.tolist())
        if len(self.values) == self.fail_at:
            raise RuntimeError("consumer failed")

    def end(self):
        self.ends += 1


def test_streamer_gets_prompt_then_tokens_then_the_end(model, batch):
    recorder = Recorder()
    output = model.generate(**batch.inputs(), max_new_tokens=5, streamer=recorder)
    steps = [list(column) for column in zip(*new_tokens(output, batch), strict=True)]
    assert recorder.values == [batch.input_ids.tolist(), *steps]
    assert recorder.ends == 1


def test_streamer_hears_the_end_after_an_error(model, batch):
    recorder = Recorder(fail_at=3)
    with pytest.raises(RuntimeError, match="consumer failed"):
        model.generate(**batch.inputs(), max_new_tokens=5, streamer=recorder)
    assert recorder.ends == 1


def test_step_by_step(model, batch):
    """generate_steps() is generate(); leaving it early keeps what is there and ends the stream."""
    recorder = Recorder()
    plain = model.generate(**batch.inputs(), max_new_tokens=5)
    run = model.generate_steps(**batch.inputs(), max_new_tokens=5, streamer=recorder)
    steps = [step.tokens for step in run]
    assert run.result().equal(plain)
    assert [list(column) for column in zip(*steps, strict=True)] == new_tokens(plain, batch)
    assert recorder.values[1:] == steps and recorder.ends == 1
    run = model.generate_steps(**batch.inputs(), max_new_tokens=5, streamer=(recorder := Recorder()))
    for _ in run:
        break
    assert run.result().equal(plain[:, :-4])
    assert [sequence.finish_reason for sequence in run.sequences] == [None] * 3
    assert recorder.ends == 1


def test_criteria_end_rows_or_everything(model, batch):
    length = batch.input_ids.shape[1]
    scores_seen = []

    def rows(ids, scores):
        scores_seen.append(scores)
        return torch.tensor([ids.shape[1] >= length + 2, False, ids.shape[1] >= length + 4])

    plain = new_tokens(model.generate(**batch.inputs(), max_new_tokens=6), batch)
    output = new_tokens(model.generate(**batch.inputs(), max_new_tokens=6, stopping_criteria=[rows]), batch)
    assert output == [[*plain[0][:2], 0, 0, 0, 0], plain[1], [*plain[2][:4], 0, 0]]
    assert scores_seen == [None] * 6
    stop = model.generate(
        **batch.inputs(), max_new_tokens=6, stopping_criteria=lambda ids, scores: ids.shape[1] > length + 2
    )
    assert stop.shape[1] == length + 3
    bare = random_llava(llava_dict(text={"eos_token_id": None, "pad_token_id": None}))
    with pytest.raises(GenerationError, match="pad_token_id"):
        bare.generate(**batch.inputs(), max_new_tokens=6, stopping_criteria=[rows])


def test_processors_find_their_rows_when_others_have_ended(model, batch):
    def force(ids, scores):
        assert ids.shape[0] == scores.shape[0] == 3
        forced = torch.full_like(scores, float("-inf"))
        forced[torch.arange(3), 20 + torch.arange(3)] = 0.0
        return forced

    output = model.generate(**batch.inputs(), max_new_tokens=3, logits_processor=force, eos_token_id=20)
    assert new_tokens(output, batch) == [[20, 0, 0], [21, 21, 21], [22, 22, 22]]


def test_result_is_usable_for_training_and_the_mode_stays(model, batch):
    model.train()
    try:
        output = model.generate(**batch.inputs(), max_new_tokens=2)
        assert model.training
        loss = model.get_input_embeddings()(output).sum()
        loss.backward()
    finally:
        model.eval()
        model.zero_grad()
    assert not output.is_inference()


def test_no_warnings_in_ordinary_use(model, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**batch.inputs(), max_new_tokens=2, do_sample=True, temperature=0.7, top_p=0.9, seed=1)


def test_stop_strings_are_strings(model, batch):
    with pytest.raises(GenerationError, match=r"stop_strings is 5, expected a string or a list of strings"):
        model.generate(**batch.inputs(), max_new_tokens=2, stop_strings=5)


# --- prompt lookup and the number format of the cache


def alike(batch, model, **settings):
    """The outputs of a call without and with prompt lookup."""
    outputs = []
    for lookup in ({}, {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 1}):
        torch.manual_seed(0)
        outputs.append(model.generate(**batch.inputs(), **settings, **lookup))
    return outputs


@pytest.fixture
def passes(model, monkeypatch):
    seen = []
    whole = model.forward_packed
    monkeypatch.setattr(model, "forward_packed", lambda embeds, *a: seen.append(len(embeds)) or whole(embeds, *a))
    return seen


def test_prompt_lookup_changes_no_result(model, batch, passes):
    plain, ahead = alike(batch, model, max_new_tokens=60)
    assert ahead.equal(plain)
    assert sum(passes[60:]) > sum(passes[:60])  # it was at work
    assert len(passes) <= 120
    for settings in (
        {"repetition_penalty": 0.5},
        {"do_sample": True, "temperature": 0.2, "top_k": 0},
        {"do_sample": True, "temperature": 0.2, "seed": 3, "num_return_sequences": 2},
        {"use_cache": False, "eos_token_id": 30, "min_new_tokens": 8},
        {"prefill_chunk_size": 5, "no_repeat_ngram_size": 0},
    ):
        plain, ahead = alike(batch, model, max_new_tokens=30, **settings)
        assert ahead.equal(plain), settings


def test_prompt_lookup_changes_nothing_that_is_given_out_on_the_way(model, batch):
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 40}
    length, calls, recorders = batch.input_ids.shape[1], [], []
    for lookup in (None, 6):
        recorder, seen = Recorder(), []

        def processor(ids, scores, seen=seen):
            seen.append(ids.tolist())
            scores = scores.clone()
            scores[:, ids[:, -3:]] -= 0.7
            return scores

        def criterion(ids, scores, seen=seen):
            seen.append((ids.tolist(), len(scores)))
            return torch.tensor([False, ids.shape[1] >= length + 25, False])

        output = model.generate(
            **batch.inputs(),
            **asked,
            streamer=recorder,
            logits_processor=processor,
            stopping_criteria=criterion,
            prompt_lookup_num_tokens=lookup,
        )
        calls.append(seen)
        recorders.append((recorder.values, output))
    assert calls[0] == calls[1]
    (values, plain), (others, ahead) = recorders
    assert values == others and len(values) == 41
    assert ahead.sequences.equal(plain.sequences) and ahead.finish_reasons == plain.finish_reasons
    for name in ("scores", "logits"):
        assert len(ahead[name]) == 40
        torch.testing.assert_close(torch.stack(ahead[name]), torch.stack(plain[name]), rtol=1e-4, atol=1e-4)


def test_prompt_lookup_step_by_step(model, batch):
    plain = [(step.rows, step.tokens) for step in model.generate_steps(**batch.inputs(), max_new_tokens=30)]
    run = model.generate_steps(**batch.inputs(), max_new_tokens=30, prompt_lookup_num_tokens=5)
    assert [(step.rows, step.tokens) for step in run] == plain


def test_prompt_lookup_as_a_setting_of_the_model(model, batch, passes):
    model.generation_config = GenerationConfig(max_new_tokens=30, pad_token_id=0, prompt_lookup_num_tokens=6)
    try:
        model.generate(**batch.inputs())
        ahead, _ = sum(passes), passes.clear()
        model.generate(**batch.inputs(), prompt_lookup_num_tokens=None)
        assert sum(passes) < ahead
    finally:
        del model.generation_config


def test_settings_of_prompt_lookup_and_of_the_cache(model, batch):
    for wrong in ({"prompt_lookup_num_tokens": 0}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 0}):
        with pytest.raises(GenerationError, match=f"{list(wrong)[-1]} is 0, expected an integer of at least 1"):
            model.generate(**batch.inputs(), max_new_tokens=2, **wrong)
    with pytest.warns(UserWarning, match="max_matching_ngram_size=3 without effect"):
        model.generate(**batch.inputs(), max_new_tokens=2, max_matching_ngram_size=3)
    with pytest.warns(UserWarning, match="kv_cache='bf16' without effect: use_cache=False"):
        model.generate(**batch.inputs(), max_new_tokens=2, kv_cache="bf16", use_cache=False)
    with pytest.raises(GenerationError, match="kv_cache is 'int4', expected 'bf16', 'int8', or None"):
        model.generate(**batch.inputs(), max_new_tokens=2, kv_cache="int4")
    for kind in ("quantized", "static", "offloaded"):
        with pytest.raises(GenerationError, match=f"cache_implementation='{kind}' is not implemented.*kv_cache='int8'"):
            model.generate(**batch.inputs(), max_new_tokens=2, cache_implementation=kind)
    config = GenerationConfig.from_dict({"prompt_lookup_num_tokens": 4, "kv_cache": "int8", "assistant_lookbehind": 10})
    assert (config.prompt_lookup_num_tokens, config.kv_cache) == (4, "int8")
    with pytest.raises(ConfigError, match=r"assistant_model.*prompt_lookup_num_tokens"):
        GenerationConfig.from_dict({"assistant_model": "m"})


def test_a_cache_of_its_own_number_format(model, batch):
    asked = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 3}
    plain, rounded = (model.generate(**batch.inputs(), kv_cache=kind, **asked) for kind in (None, "bf16"))
    for step, (exact, close) in enumerate(zip(plain.logits, rounded.logits, strict=True)):
        torch.testing.assert_close(close, exact, rtol=0.1, atol=0.1)
        assert not close.equal(exact), step
