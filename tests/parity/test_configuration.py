"""Configurations against Transformers 5.23: what either side writes, the other reads to the same fields."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from typing import Any

import pytest
import torch
import transformers
from random_models import VARIANTS

from pixtral.configuration import Config, GenerationConfig, LlavaConfig, MistralConfig, PixtralVisionConfig

KINDS: list[tuple[type[Config], Any, dict[str, Any]]] = [
    (LlavaConfig, transformers.LlavaConfig, values) for values in VARIANTS.values()
]
KINDS += [
    (MistralConfig, transformers.MistralConfig, values["text_config"] | more)
    for values in VARIANTS.values()
    for more in ({}, {"head_dim": None, "hidden_size": 48, "sliding_window": 77, "eos_token_id": [2, 3]})
]
KINDS += [
    (PixtralVisionConfig, transformers.PixtralVisionConfig, values["vision_config"] | more)
    for values in VARIANTS.values()
    for more in ({}, {"image_size": [64, 64], "attention_dropout": 0.5})
]
ONLY_OURS = {"rope_theta", "image_break_token_id", "image_end_token_id", "quantization_config"}


def assert_same_fields(ours: Any, theirs: Any) -> None:
    assert ours.model_type == theirs.model_type
    for field in dataclasses.fields(ours):
        value = getattr(ours, field.name)
        if isinstance(value, Config):
            assert_same_fields(value, getattr(theirs, field.name))
        elif field.name == "rope_parameters":
            assert {k: v for k, v in theirs.rope_parameters.items() if v is not None} == value
            assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        elif field.name in ("image_size", "patch_size"):
            assert getattr(theirs, field.name) in (value, [value, value])
        elif field.name == "dtype":
            assert value == (None if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."))
        elif field.name == "tie_word_embeddings" and isinstance(ours, MistralConfig):
            pass  # ours says of the decoder what holds for the whole; the whole is compared
        elif field.name not in ONLY_OURS:
            assert value == getattr(theirs, field.name, None), field.name
    if not isinstance(ours, LlavaConfig):
        assert ours.head_dim == theirs.head_dim


@pytest.mark.parametrize(("kind", "their_kind", "values"), KINDS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_each_reads_what_the_other_writes(
    kind: type[Config], their_kind: Any, values: dict[str, Any], dtype: Any, tmp_path: pathlib.Path
) -> None:
    theirs = their_kind(**copy.deepcopy(values), dtype=dtype)
    ours = kind.from_dict({**copy.deepcopy(values), "dtype": dtype})
    assert_same_fields(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert_same_fields(kind.from_pretrained(tmp_path / "theirs"), theirs)
    assert_same_fields(ours, their_kind.from_pretrained(tmp_path / "ours"))
    assert_same_fields(ours, transformers.AutoConfig.from_pretrained(tmp_path / "ours"))


def test_class_defaults() -> None:
    for ours, theirs in (
        (MistralConfig(), transformers.MistralConfig()),
        (PixtralVisionConfig(), transformers.PixtralVisionConfig()),
    ):
        assert_same_fields(ours, theirs)
    whole = LlavaConfig()
    reference = transformers.LlavaConfig(vision_config={"model_type": "pixtral"}, text_config={"model_type": "mistral"})
    assert_same_fields(whole, reference)


def test_generation_config(tmp_path: pathlib.Path) -> None:
    theirs = transformers.GenerationConfig(
        do_sample=True, temperature=0.3, top_p=0.9, eos_token_id=[2, 5], max_new_tokens=7, pad_token_id=11
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GenerationConfig.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    for name in ("do_sample", "temperature", "top_p", "eos_token_id", "max_new_tokens", "pad_token_id"):
        assert getattr(theirs, name) == getattr(ours, name) == getattr(again, name)
