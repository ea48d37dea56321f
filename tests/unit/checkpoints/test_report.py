"""The report: right numbers from headers alone, and ok exactly when the checkpoint can be loaded."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import prefixed, write_hf, write_mistral, write_weights
from random_models import llava_dict, packable_dict, random_llava
from safetensors.torch import load_file, save_file

from pixtral.checkpoints import inspect_checkpoint, load_model, save_model
from pixtral.configuration import BitsAndBytesConfig
from pixtral.errors import CheckpointError
from pixtral.models import NETWORKS
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.quantization import QuantizationArguments


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_sound_checkpoint(layout: str, shards: int, tmp_path: Path) -> None:
    state = (write_hf if layout == "hf" else write_mistral)(tmp_path, shards=shards)
    report = inspect_checkpoint(tmp_path, NETWORKS)
    assert report.ok
    assert (report.layout, report.also, len(report.files)) == (layout, None, shards)
    assert report.total == sum(value.numel() for value in state.values())
    assert report.nbytes == sum(value.nbytes for value in state.values())
    assert report.dtypes == {"float32": report.total}
    count = {
        "vision tower": sum(v.numel() for n, v in state.items() if "vision_tower" in n),
        "projector": sum(v.numel() for n, v in state.items() if "projector" in n),
        "embeddings": 96 * 40,
        "decoder": sum(v.numel() for n, v in state.items() if "language_model" in n) - 96 * 40,
        "output layer": 96 * 40,
    }
    assert report.parameters == count
    assert report.summary()["decoder"] == "3 layers, 40 wide, 4 query and 2 key heads of 16"
    text = str(report)
    assert f"{report.total:,}" in text
    assert text.endswith("can be loaded")


def test_both_layouts(tmp_path: Path) -> None:
    write_hf(tmp_path)
    write_mistral(tmp_path)
    assert "hf (the mistral layout is there too)" in str(inspect_checkpoint(tmp_path, NETWORKS))
    assert inspect_checkpoint(tmp_path, NETWORKS, layout="mistral").layout == "mistral"


def test_a_part_alone(tmp_path: Path) -> None:
    write_weights(tmp_path, random_llava().model.vision_tower.state_dict(), "model")
    (tmp_path / "config.json").write_text(json.dumps(llava_dict()["vision_config"]))
    report = inspect_checkpoint(tmp_path, NETWORKS)
    assert report.ok
    assert list(report.parameters) == ["vision tower"]


def test_mixed_dtypes_are_counted(tmp_path: Path) -> None:
    state = {prefixed(n, "classic"): v.bfloat16() for n, v in write_hf(tmp_path).items()}
    state["vision_tower.ln_pre.weight"] = state["vision_tower.ln_pre.weight"].float()
    write_weights(tmp_path, state, "model")
    report = inspect_checkpoint(tmp_path, NETWORKS)
    assert list(report.dtypes.items()) == [("bfloat16", report.total - 32), ("float32", 32)]


def break_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = {prefixed(n, "classic"): v for n, v in random_llava().state_dict().items()}
        change(state)
        write_weights(folder, state, "model")

    return apply


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def break_config(folder: Path) -> None:
    values = copy.deepcopy(llava_dict())
    values["text_config"]["hidden_act"] = "mish"
    (folder / "config.json").write_text(json.dumps(values))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (break_weights(lambda s: s.pop("vision_tower.ln_pre.weight")), "1 parameters missing"),
    "unexpected": (break_weights(lambda s: s.update(extra=torch.ones(1))), r"1 unexpected names \(extra\)"),
    "shape": (break_weights(lambda s: s.update({"vision_tower.ln_pre.weight": torch.ones(3)})), r"found \[3\]"),
    "truncated": (truncate, "is cut short"),
    "config field": (break_config, "mish"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "config missing": (lambda folder: (folder / "config.json").unlink(), "but no config.json"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "no weights in"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_reported_and_cannot_be_loaded(name: str, tmp_path: Path) -> None:
    change, says = BROKEN[name]
    write_hf(tmp_path)
    change(tmp_path)
    report = inspect_checkpoint(tmp_path, NETWORKS)
    assert not report.ok
    assert "can be loaded" not in str(report)
    assert re.search(says, str(report))
    with pytest.raises((CheckpointError, ValueError), match=says):
        load_model(LlavaForConditionalGeneration, tmp_path)


def test_lists_are_whole(tmp_path: Path) -> None:
    """A message shows the first few; the report has all of them."""
    write_hf(tmp_path)
    break_weights(lambda s: [s.pop(n) for n in list(s) if "mlp" in n] and s.update(a=torch.ones(1)))(tmp_path)
    report = inspect_checkpoint(tmp_path, NETWORKS)
    assert len(report.missing) == 9
    assert report.unexpected == ("a",)
    assert not report.mismatched


def test_no_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path)
    monkeypatch.setattr("pixtral.checkpoints.fill.read_tensor", lambda *_: pytest.fail("read"))
    monkeypatch.setattr("pixtral.checkpoints.safetensors_io.read_tensor", lambda *_: pytest.fail("read"))
    assert inspect_checkpoint(tmp_path, NETWORKS).ok


def test_no_such_place_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"no folder './nowhere' here"):
        inspect_checkpoint("./nowhere", NETWORKS)


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A stored model in 4 bits, the output layer in 8."""
    write_hf(tmp_path / "plain", config=packable_dict())
    save_model(
        load_model(LlavaForConditionalGeneration, tmp_path / "plain", asked=QuantizationArguments("int4")),
        tmp_path / "quantized",
    )
    return tmp_path / "quantized"


def test_what_is_quantized(quantized: Path) -> None:
    """Counted as the weights that it stands for, and measured as it is."""
    plain, report = inspect_checkpoint(quantized.parent / "plain", NETWORKS), inspect_checkpoint(quantized, NETWORKS)
    assert report.ok and plain.quantization == ()
    assert report.parameters == plain.parameters
    assert report.nbytes < plain.nbytes
    decoder, down, head = report.quantization
    assert (decoder.part, decoder.format, decoder.layers) == ("decoder", "4 bits, groups of 64", 3 * 5)
    assert (down.part, down.format, down.layers) == ("decoder", "4 bits, groups of 32", 3 * 2)  # o and down
    assert (head.part, head.format, head.layers) == ("output layer", "8 bits, groups of 64", 1)
    assert head.parameters == 100 * 64
    assert head.nbytes == 112 * 64 + 112 + 112 * 4  # in tiles of 16 rows
    assert head.bits == 8 * head.nbytes / 6400
    quantized_weights = sum(one.parameters for one in report.quantization)
    by_format = {"4 bits, groups of 64": decoder.parameters, "4 bits, groups of 32": down.parameters}
    by_format |= {"8 bits, groups of 64": head.parameters, "float32": report.total - quantized_weights}
    assert report.dtypes == by_format
    assert list(report.dtypes.values()) == sorted(report.dtypes.values(), reverse=True)
    assert "quantized    decoder: 15 layers in 4 bits, groups of 64, 4." in str(report)
    assert report.quantization_facts()[0]["bits"] == round(decoder.bits, 3)


def test_a_broken_quantized_checkpoint_is_reported(quantized: Path) -> None:
    state = load_file(quantized / "model.safetensors")
    del state["language_model.model.layers.1.mlp.up_proj.scales"]
    save_file(state, quantized / "model.safetensors")
    report = inspect_checkpoint(quantized, NETWORKS)
    assert report.missing == ("model.language_model.layers.1.mlp.up_proj.scales",)
    assert "The quantized weights are not whole" in str(report)
    file = quantized / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"]["version"] = 9
    file.write_text(json.dumps(values))
    (problem,) = inspect_checkpoint(quantized, NETWORKS).problems
    assert "in version 9 of pixtral's format" in problem
    values["quantization_config"] = {"quant_method": "gptq"}
    file.write_text(json.dumps(values))
    (problem,) = inspect_checkpoint(quantized, NETWORKS).problems
    assert "the weights are quantized (gptq)" in problem


@pytest.mark.parametrize("bits", [4, 8])
def test_what_bitsandbytes_quantized(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_hf(tmp_path / "plain", config=packable_dict())
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    model = load_model(
        LlavaForConditionalGeneration,
        tmp_path / "plain",
        asked=QuantizationArguments(config=config),
        dtype=torch.bfloat16,
    )
    save_model(model, tmp_path / "quantized")
    plain, report = (
        inspect_checkpoint(tmp_path / "plain", NETWORKS),
        inspect_checkpoint(tmp_path / "quantized", NETWORKS),
    )
    assert report.ok
    assert report.parameters == plain.parameters
    assert [(one.part, one.layers) for one in report.quantization] == [
        ("vision tower", 21),
        ("projector", 2),
        ("decoder", 21),
    ]
    assert all(f"{bits} bits" in one.format and bits < one.bits < bits + 1 for one in report.quantization)
