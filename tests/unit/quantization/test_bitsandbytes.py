"""Choosing layers, refusing what cannot be, and what is said once; the numbers stand in tests/parity."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, write_hf
from random_models import llava_dict, random_batch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pixtral
from pixtral import BitsAndBytesConfig, LlavaForConditionalGeneration
from pixtral.checkpoints.report import inspect_checkpoint
from pixtral.errors import CheckpointError, ConfigError, MissingDependency
from pixtral.models import NETWORKS
from pixtral.quantization.bitsandbytes import skips

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}


@pytest.fixture
def needs_library() -> None:
    pytest.importorskip("bitsandbytes")


def load(folder: Path, config: dict[str, Any] | None = None, **arguments: Any) -> LlavaForConditionalGeneration:
    chosen = None if config is None else BitsAndBytesConfig(**config)
    return LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=chosen, progress=False, **arguments
    )


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1", "model.layers.11.mlp.up_proj", False),
        ("model.layers.*.mlp.up", "model.layers.3.mlp.up_proj", False),
        ("model.layers.*.up_proj", "model.layers.3.mlp.up_proj", True),
        ("vision_tower", "model.vision_tower.transformer.layers.0.attention.q_proj", False),
        ("proj", "model.layers.0.self_attn.q_proj", True),
        ("lm_head|model.vision_tower", "model.vision_tower.transformer.layers.0.attention.q_proj", True),
    ],
)
def test_what_an_entry_of_skip_modules_names(pattern: str, name: str, expected: bool) -> None:
    assert skips(pattern, name) is expected


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path)

    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", nothing)
    with pytest.raises(MissingDependency, match=r'bitsandbytes 0.46.1 or newer.*pip install "pixtral\[bnb\]"'):
        load(tmp_path, NF4)
    with pytest.raises(ImportError):
        pixtral.load(quantization_config=BitsAndBytesConfig(**NF4))
    assert load(tmp_path).dtype == torch.float32


@pytest.mark.parametrize(("version", "enough"), [("0.46.0", False), ("0.45.9.dev1", False), ("0.46.1", True)])
def test_an_old_library(
    version: str, enough: bool, needs_library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    if enough:
        assert load(tmp_path, NF4).is_loaded_in_4bit
        return
    with pytest.raises(
        MissingDependency, match=rf"found bitsandbytes {version}, expected 0.46.1 or newer; pip install"
    ):
        load(tmp_path, NF4)


def test_names_that_match_nothing_are_reported(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path)
    with pytest.warns(UserWarning, match=r"'vision_tower' matches no linear layer.*'model.vision_tower'"):
        model = load(tmp_path, {**NF4, "llm_int8_skip_modules": ["lm_head", "vision_tower"]})
    assert type(model.vision_tower.transformer.layers[0].attention.q_proj).__name__ == "Linear4bit"
    model.save_pretrained(tmp_path / "saved")
    load(tmp_path / "saved")  # nobody can change what the files say: no warning


def test_inspect_goes_by_the_files(needs_library: None, tmp_path: Path) -> None:
    """Names of former Transformers in llm_int8_skip_modules mean nothing today."""
    write_hf(tmp_path)
    skip = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    load(tmp_path, {**NF4, "llm_int8_skip_modules": skip}).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"]["llm_int8_skip_modules"] = [name.removeprefix("model.") for name in skip]
    file.write_text(json.dumps(values))
    found = inspect_checkpoint(tmp_path / "saved", NETWORKS)
    assert found.problems == ()
    assert "4 bits (nf4), bitsandbytes" in str(found.quantization)


def test_double_precision_is_refused(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path)
    with pytest.raises(ConfigError, match="bitsandbytes computes in bfloat16, float16 or float32; found dtype float64"):
        load(tmp_path, NF4, dtype="float64")


def test_full_precision_files_with_a_quantized_configuration(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for bits, scales in (("load_in_4bit", "weight.absmax"), ("load_in_8bit", "SCB")):
        quantization = BitsAndBytesConfig(**{bits: True}).to_dict()
        (tmp_path / "config.json").write_text(json.dumps({**values, "quantization_config": quantization}))
        with pytest.raises(CheckpointError, match=rf"no file holds their scales \(names that end with '.{scales}'\)"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["weight.absmax", "weight.quant_state.bitsandbytes__nf4", "weight.quant_map"])
def test_a_stored_tensor_that_is_missing_is_listed(name: str, needs_library: None, tmp_path: Path) -> None:
    file, tensors, first = stored(tmp_path, name)
    save_file({key: value for key, value in tensors.items() if key != first}, file)
    # a layer without scales counts as one in full precision
    says = (
        r"q_proj.weight: found .* uint8, expected \[" if name == "weight.absmax" else rf"1 parameters missing .*{name}"
    )
    with pytest.raises(CheckpointError, match=says):
        load(file.parent)


def test_a_stored_tensor_of_another_shape_is_listed(needs_library: None, tmp_path: Path) -> None:
    file, tensors, first = stored(tmp_path, "weight.absmax")
    save_file({**tensors, first: tensors[first][:3].contiguous()}, file)
    with pytest.raises(CheckpointError, match=r"1 of another shape or kind .*absmax: found \[3\] float32, expected \["):
        load(file.parent)


def stored(folder: Path, name: str) -> tuple[Path, dict[str, Tensor], str]:
    """A file in 4 bits, its tensors, and the first that has this name in a query projection."""
    write_hf(folder)
    file = load(folder, NF4).save_pretrained(folder / "saved")[0]
    tensors = load_file(file)
    return file, tensors, next(key for key in tensors if key.endswith(f"q_proj.{name}"))


def test_mistrals_layout_cannot_hold_it(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path)
    with pytest.raises(ConfigError, match="quantized weights have no form in Mistral's layout"):
        load(tmp_path, NF4).save_pretrained(tmp_path / "saved", layout="mistral")
    assert not (tmp_path / "saved").exists() or not list((tmp_path / "saved").iterdir())


def test_an_output_layer_that_is_tied_stays(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path, config=llava_dict(tie_word_embeddings=True))
    model = load(tmp_path, {"load_in_8bit": True})
    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    model.save_pretrained(tmp_path / "saved")
    assert_same(load(tmp_path / "saved").state_dict(), model.state_dict())


def test_a_dictionary_is_taken_as_well(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config={"load_in_8bit": True})
    assert model.is_loaded_in_8bit
    assert model.quantization_config == BitsAndBytesConfig(load_in_8bit=True)
    assert model.config.quantization_config == BitsAndBytesConfig(load_in_8bit=True).to_dict()


def test_repeated_messages_of_the_library_are_heard_once(
    needs_library: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_hf(tmp_path)
    model = load(tmp_path, {"load_in_8bit": True}, dtype="bfloat16")
    for one in logging.getLogger("bitsandbytes.autograd._functions").filters:
        one.__init__()  # type: ignore[misc]  # as if nothing had been said yet
    batch = random_batch(model.config).inputs()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with torch.no_grad():
        model(**batch)
        model(**batch)
    said = [record.getMessage() for record in caplog.records if "will be cast" in record.getMessage()]
    assert len(said) == len(set(said)) == 1


def test_loading_says_nothing_else(needs_library: None, tmp_path: Path) -> None:
    write_hf(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(tmp_path, NF4, dtype="bfloat16")
        model.save_pretrained(tmp_path / "saved")
        load(tmp_path / "saved")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    twin = copy.deepcopy(model)
    assert_same(twin.state_dict(), model.state_dict())
    assert twin.quantization_config == model.quantization_config
    assert model.quantizer is not None
    assert model.quantizer.describe(linear["model.vision_tower.transformer.layers.0.attention.q_proj"]) == (
        "4 bits (nf4), bitsandbytes"
    )
