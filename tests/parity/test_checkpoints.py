"""Checkpoints beside Transformers 5.23: it reads what we write, we read what it writes, bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_files import assert_same, native_state, params_json, write_weights
from random_models import VARIANTS, llava_dict, random_batch, random_llava, randomize
from safetensors import safe_open

from pixtral.configuration import GenerationConfig, LlavaConfig
from pixtral.models import LlavaForConditionalGeneration, MistralForCausalLM, PixtralVisionModel

# one of each kind: head counts, activations, projector bias, inner layers, tied embeddings
NETWORKS = ["pixtral", "multi_head", "one_kv_head", "first_layer"]


def theirs(values: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A random network of Transformers."""
    model = transformers.LlavaForConditionalGeneration._from_config(transformers.LlavaConfig(**copy.deepcopy(values)))
    randomize(model)
    return model.to(dtype).eval()


def ours(values: dict[str, Any], dtype: torch.dtype = torch.float32) -> LlavaForConditionalGeneration:
    """A random network of ours, as a public model."""
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(copy.deepcopy(values)))
    randomize(model)
    return model.to(dtype).eval()


def read_by_transformers(cls: Any, folder: Path) -> Any:
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: Any, config: LlavaConfig) -> torch.Tensor:
    batch = random_batch(config).inputs()
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found[batch["attention_mask"].bool()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_reads_what_we_write(name: str, shard: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = ours(VARIANTS[name], dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    other = read_by_transformers(transformers.LlavaForConditionalGeneration, tmp_path)
    assert_same(other.state_dict(), model.state_dict())
    expected = transformers.LlavaConfig(**copy.deepcopy(VARIANTS[name])).to_dict()
    found = other.config.to_dict()
    for part in ("text_config", "vision_config"):
        for key, value in expected[part].items():
            if key not in ("dtype", "architectures", "_name_or_path", "tie_word_embeddings"):
                assert found[part][key] == value, (part, key)
    if dtype == torch.float32:
        torch.testing.assert_close(logits(model, model.config), logits(other, model.config), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("name", NETWORKS)
def test_we_read_what_transformers_writes(name: str, shard: str, dtype: torch.dtype, tmp_path: Path) -> None:
    other = theirs(VARIANTS[name], dtype)
    other.save_pretrained(tmp_path, max_shard_size=shard)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert_same(model.state_dict(), other.state_dict())
    if dtype == torch.float32:
        torch.testing.assert_close(logits(model, model.config), logits(other, model.config), rtol=0, atol=1e-4)


def test_names_and_fields_on_disk_are_those_of_transformers(tmp_path: Path) -> None:
    values = llava_dict()
    theirs(values).save_pretrained(tmp_path / "theirs")
    ours(values).save_pretrained(tmp_path / "ours")
    keys = {}
    for side in ("theirs", "ours"):
        with safe_open(tmp_path / side / "model.safetensors", "pt") as file:
            keys[side] = set(file.keys())
    assert keys["ours"] == keys["theirs"]
    written = {side: json.loads((tmp_path / side / "config.json").read_text()) for side in keys}
    for part in (None, "text_config", "vision_config"):
        here, there = (written[side][part] if part else written[side] for side in ("ours", "theirs"))
        # they write the tower's derived head_dim too, and their version; the rest has one value in both
        assert there.keys() - here.keys() <= {"head_dim", "transformers_version"}
        for key in there.keys() & here.keys() - {"text_config", "vision_config"}:
            if key not in ("dtype", "architectures"):
                assert here[key] == there[key], (part, key)


@pytest.mark.parametrize(
    ("cls", "other", "part"),
    [
        (MistralForCausalLM, transformers.MistralForCausalLM, "text_config"),
        (PixtralVisionModel, transformers.PixtralVisionModel, "vision_config"),
    ],
)
def test_the_parts_alone_both_ways(cls: Any, other: Any, part: str, tmp_path: Path) -> None:
    ours(llava_dict()).save_pretrained(tmp_path / "whole")
    model = cls.from_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "ours")
    reference = read_by_transformers(other, tmp_path / "ours")
    assert_same(reference.state_dict(), model.state_dict())
    reference.save_pretrained(tmp_path / "theirs")
    assert_same(cls.from_pretrained(tmp_path / "theirs").state_dict(), model.state_dict())


def test_a_base_model_of_transformers(tmp_path: Path) -> None:
    """LlavaModel, without output layer: its two parts can be read, the whole names what is missing."""
    whole = theirs(llava_dict())
    whole.model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["LlavaModel"]
    tower = PixtralVisionModel.from_pretrained(tmp_path)
    assert_same(tower.state_dict(), whole.model.vision_tower.state_dict())
    with pytest.raises(OSError, match=r"1 parameters missing \(lm_head.weight\)"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("bias", [True, False])
def test_both_layouts_of_one_network_give_transformers_numbers(bias: bool, tmp_path: Path) -> None:
    values = llava_dict(multimodal_projector_bias=bias)
    reference = theirs(values)
    reference.save_pretrained(tmp_path / "hf")
    write_weights(tmp_path / "native", native_state(reference.state_dict(), values), "consolidated")
    (tmp_path / "native" / "params.json").write_text(json.dumps(params_json(values)))
    hf = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    native = LlavaForConditionalGeneration.from_pretrained(tmp_path / "native")
    assert_same(native.state_dict(), hf.state_dict())
    expected = logits(reference, hf.config)
    assert torch.equal(logits(native, native.config), logits(hf, hf.config))
    torch.testing.assert_close(logits(native, native.config), expected, rtol=0, atol=1e-4)


def test_layouts_convert_into_each_other(tmp_path: Path) -> None:
    """HF -> native -> HF, read by Transformers in the end."""
    reference = theirs(llava_dict())
    reference.save_pretrained(tmp_path / "1")
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2", layout="mistral")
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "2").save_pretrained(tmp_path / "3")
    assert_same(
        read_by_transformers(transformers.LlavaForConditionalGeneration, tmp_path / "3").state_dict(),
        reference.state_dict(),
    )


def test_defaults_of_generation_both_ways(tmp_path: Path) -> None:
    model = ours(llava_dict())
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], do_sample=True, temperature=0.5, max_new_tokens=9)
    model.save_pretrained(tmp_path)
    other = read_by_transformers(transformers.LlavaForConditionalGeneration, tmp_path)
    found = other.generation_config
    assert (found.eos_token_id, found.do_sample, found.temperature, found.max_new_tokens) == ([2, 7], True, 0.5, 9)
    other.save_pretrained(tmp_path / "theirs")
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "theirs").generation_config
    assert (again.eos_token_id, again.do_sample, again.temperature, again.max_new_tokens) == ([2, 7], True, 0.5, 9)


def test_the_head_dimension_that_transformers_would_guess_wrong(tmp_path: Path) -> None:
    """Without head_dim Transformers divides and cannot load; we ask the weights, and save what they said."""
    random = random_llava()
    model = ours(llava_dict())
    model.save_pretrained(tmp_path / "1")
    values = json.loads((tmp_path / "1" / "config.json").read_text())
    assert values["text_config"].pop("head_dim") == 16
    (tmp_path / "1" / "config.json").write_text(json.dumps(values))
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2")
    other = read_by_transformers(transformers.LlavaForConditionalGeneration, tmp_path / "2")
    assert_same(other.state_dict(), random.state_dict())
