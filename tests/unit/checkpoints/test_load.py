"""Loading: the same tensors from every layout, every parameter once, refusals by name, and the progress bar."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, native_state, params_json, prefixed, write_hf, write_mistral, write_weights
from random_models import VARIANTS, llava_dict, random_llava

from pixtral.checkpoints import load_model
from pixtral.checkpoints.fill import byte_bar
from pixtral.checkpoints.names import HF
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig
from pixtral.errors import CheckpointError
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel

LAYOUTS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    "hf classic": write_hf,
    "hf classic, shards": lambda folder: write_hf(folder, shards=4),
    "hf classic, shards without index": lambda folder: write_hf(folder, shards=4, index=False),
    "hf nested": lambda folder: write_hf(folder, "nested"),
    "hf nested, shards": lambda folder: write_hf(folder, "nested", shards=2),
    "hf flat": lambda folder: write_hf(folder, "flat"),
    "hf mixed": lambda folder: write_hf(folder, "mixed"),
    "mistral": write_mistral,
    "mistral, shards": lambda folder: write_mistral(folder, shards=3),
}


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; "text__head_dim" is text_config.head_dim, None removes a field."""
    values = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        place = values[f"{part}_config"] if part else values
        place[name] = value
        if value is None:
            del place[name]
    (folder / "config.json").write_text(json.dumps(values))


def load(folder: Path, **arguments: Any) -> LlavaForConditionalGeneration:
    return load_model(LlavaForConditionalGeneration, folder, **arguments)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_tensors(name: str, tmp_path: Path) -> None:
    state = LAYOUTS[name](tmp_path)
    model = load(tmp_path)
    assert_same(model.state_dict(), state)
    assert not model.training
    assert all(p.requires_grad and not p.is_meta and p.is_contiguous() for p in model.parameters())
    origin = model.loaded_from
    assert origin.folder == tmp_path
    assert origin.layout == name.split()[0].rstrip(",")
    assert set(origin.files) == set(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_network(name: str, tmp_path: Path) -> None:
    state = random_llava(VARIANTS[name]).state_dict()
    write_hf(tmp_path, config=VARIANTS[name])
    model = load(tmp_path)
    assert_same(model.state_dict(), state)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == model.config.tie_word_embeddings


def test_both_layouts_in_one_folder(tmp_path: Path) -> None:
    state = write_hf(tmp_path)
    write_weights(tmp_path, native_state({n: v + 1 for n, v in state.items()}, llava_dict()), "consolidated")
    write_mistral(tmp_path / "other")
    (tmp_path / "params.json").write_bytes((tmp_path / "other" / "params.json").read_bytes())
    assert_same(load(tmp_path).state_dict(), state)
    assert load(tmp_path).loaded_from.also == "mistral"
    assert_same(load(tmp_path, layout="mistral").state_dict(), {name: value + 1 for name, value in state.items()})


@pytest.mark.parametrize("layout", ["hf", "mistral"])
def test_a_part_of_a_whole_model(layout: str, tmp_path: Path) -> None:
    state = (write_hf if layout == "hf" else write_mistral)(tmp_path)
    tower = load_model(PixtralVisionModel, tmp_path)
    text = load_model(MistralForCausalLM, tmp_path)
    assert_same(
        tower.state_dict(), {n.removeprefix("model.vision_tower."): v for n, v in state.items() if "vision_tower" in n}
    )
    decoder = {n: v for n, v in state.items() if "language_model" in n or n == "lm_head.weight"}
    assert_same(text.state_dict(), {n.replace(".language_model.", "."): v for n, v in decoder.items()})
    assert text.config.head_dim == 16


def test_a_part_reads_only_its_files(tmp_path: Path) -> None:
    """The tower's names come last in the alphabet, so they lie in the last shards; the others may be anything."""
    write_hf(tmp_path, shards=8)
    tower = load_model(PixtralVisionModel, tmp_path)
    read = {file.name for file in tower.loaded_from.files}  # type: ignore[union-attr]
    assert read < {file.name for file in tmp_path.glob("*.safetensors")}


@pytest.mark.parametrize(("prefix", "head"), [("model.", True), ("", False)])
def test_a_text_only_checkpoint(prefix: str, head: bool, tmp_path: Path) -> None:
    config = llava_dict(text={"tie_word_embeddings": not head})
    state = random_llava(config).state_dict()
    decoder = {n.replace("model.language_model.", prefix): v for n, v in state.items() if "language_model" in n}
    if head:
        decoder["lm_head.weight"] = state["lm_head.weight"]
    write_weights(tmp_path, decoder, "model")
    (tmp_path / "config.json").write_text(json.dumps(config["text_config"]))
    model = load_model(MistralForCausalLM, tmp_path)
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(model.model.norm.weight, state["model.language_model.norm.weight"])
    with pytest.raises(CheckpointError, match=r"describes a decoder \(MistralConfig\), expected tower, projector"):
        load(tmp_path)


def test_a_tower_alone(tmp_path: Path) -> None:
    state = random_llava().model.vision_tower.state_dict()
    write_weights(tmp_path, state, "model")
    (tmp_path / "config.json").write_text(json.dumps(llava_dict()["vision_config"]))
    assert_same(load_model(PixtralVisionModel, tmp_path).state_dict(), state)


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float64, torch.float32])
def test_dtype(layout: str, dtype: str | torch.dtype, tmp_path: Path) -> None:
    state = (write_hf if layout == "hf" else write_mistral)(tmp_path)
    wanted = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    model = load(tmp_path, dtype=dtype)
    assert_same(model.state_dict(), {name: value.to(wanted) for name, value in state.items()})
    name = str(wanted).removeprefix("torch.")
    assert [model.config.dtype, model.config.text_config.dtype, model.config.vision_config.dtype] == [name] * 3


def test_dtype_auto_is_the_configurations_then_the_weights(tmp_path: Path) -> None:
    state = {prefixed(n, "classic"): v.bfloat16() for n, v in random_llava().state_dict().items()}
    state["language_model.model.norm.weight"] = state["language_model.model.norm.weight"].float()
    write_weights(tmp_path, state, "model")
    (tmp_path / "config.json").write_text(json.dumps(llava_dict()))
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.bfloat16}
    edit(tmp_path, torch_dtype="float16")
    assert {p.dtype for p in load(tmp_path, dtype=None).parameters()} == {torch.float16}
    edit(tmp_path, torch_dtype=None, dtype="float32")
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_head_dim_comes_from_the_weights(tmp_path: Path) -> None:
    """Pixtral-12B: 5120 channels over 32 heads would be 160, and it is 128."""
    state = write_hf(tmp_path)
    edit(tmp_path, text__head_dim=None)
    model = load(tmp_path)
    assert model.config.text_config.head_dim == 16 != 40 // 4
    assert_same(model.state_dict(), state)
    config = LlavaConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert config.text_config.head_dim == 10
    assert load(tmp_path, config=config).config.text_config.head_dim == 16
    assert config.text_config.head_dim == 10  # the caller's object is left alone
    edit(tmp_path, text__num_attention_heads=7)
    with pytest.raises(CheckpointError, match=r"has shape \[64, 40\], which 7 heads do not divide; check num_att"):
        load(tmp_path)


def test_head_dim_of_params_json(tmp_path: Path) -> None:
    state = write_mistral(tmp_path)
    params = json.loads((tmp_path / "params.json").read_text())
    del params["head_dim"], params["vision_encoder"]["adapter_bias"]
    (tmp_path / "params.json").write_text(json.dumps(params))
    model = load(tmp_path)
    assert model.config.text_config.head_dim == 16
    assert_same(model.state_dict(), state)


@pytest.mark.parametrize("layout", ["hf", "mistral"])
def test_a_projector_without_bias_is_seen(layout: str, tmp_path: Path) -> None:
    config = llava_dict(multimodal_projector_bias=False)
    (write_hf if layout == "hf" else write_mistral)(tmp_path, config=config)
    file = tmp_path / ("config.json" if layout == "hf" else "params.json")
    values = json.loads(file.read_text())
    (values.pop("multimodal_projector_bias") if layout == "hf" else values["vision_encoder"].pop("adapter_bias"))
    file.write_text(json.dumps(values))
    model = load(tmp_path)
    assert model.config.multimodal_projector_bias is False
    assert model.model.multi_modal_projector.linear_1.bias is None


def test_a_bias_that_is_promised_and_missing_is_refused(tmp_path: Path) -> None:
    write_hf(tmp_path, config=llava_dict(multimodal_projector_bias=False))
    edit(tmp_path, multimodal_projector_bias=True)
    with pytest.raises(CheckpointError, match=r"2 parameters missing \(model.multi_modal_projector.linear_1.bias, "):
        load(tmp_path)


Change = Callable[[dict[str, torch.Tensor]], object]
MISFITS: dict[str, tuple[Change, str]] = {
    "a parameter missing": (
        lambda s: s.pop("vision_tower.ln_pre.weight"),
        r"1 parameters missing \(model.vision_tower.ln_pre.weight\)",
    ),
    "many missing": (
        lambda s: [s.pop(name) for name in list(s) if "mlp" in name],
        r"9 parameters missing \(model.language_model.layers.0.mlp.gate_proj.weight, .* and 4 more\)",
    ),
    "an unknown name": (
        lambda s: s.update({"language_model.model.layers.0.extra.weight": torch.ones(1)}),
        r"1 unexpected names \(language_model.model.layers.0.extra.weight\)",
    ),
    "a layer too many": (
        lambda s: s.update({"vision_tower.transformer.layers.3.ffn_norm.weight": torch.ones(32)}),
        r"1 unexpected names \(vision_tower.transformer.layers.3.ffn_norm.weight\).*Check the number of layers",
    ),
    "a wrong shape": (
        lambda s: s.update({"vision_tower.ln_pre.weight": torch.ones(31)}),
        r"model.vision_tower.ln_pre.weight: found \[31\] float32, expected \[32\].*Configuration and weights",
    ),
    "a transposed matrix": (
        lambda s: s.update({HEAD: s[HEAD].T}),
        r"lm_head.weight: found \[40, 96\] float32, expected \[96, 40\]",
    ),
    "head_dim": (
        lambda s: s.update({Q: s[Q][:40]}),
        r"found \[40, 40\] float32, expected \[64, 40\].*Check head_dim",
    ),
    "integers": (
        lambda s: s.update({Q: s[Q].to(torch.uint8)}),
        r"found \[64, 40\] uint8, expected \[64, 40\]",
    ),
    "quantized": (
        lambda s: s.update({Q + ".absmax": torch.ones(4)}),
        "look like a quantized checkpoint: use the one in bfloat16",
    ),
    "no output layer": (
        lambda s: s.pop(HEAD),
        r"1 parameters missing \(lm_head.weight\).*set tie_word_embeddings to true",
    ),
    "another model": (
        lambda s: [s.update({f"transformer.h.{n}": s.pop(n)}) for n in list(s)],
        "parameters missing .* unexpected .*No name is one that Pixtral's checkpoints use",
    ),
    "one parameter under two names": (
        lambda s: s.update({"lm_head.weight": s[HEAD].clone()}),
        "holds one parameter under two names, 'l.*' and 'l.*'; keep one",
    ),
}
HEAD = "language_model.lm_head.weight"
Q = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    change, says = MISFITS[name]
    state = {prefixed(n, "classic"): v for n, v in write_hf(tmp_path).items()}
    change(state)
    write_weights(tmp_path, state, "model")
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path)
    assert isinstance(caught.value, OSError)  # what a program written for Transformers catches
    if "two names" not in name:
        assert "Files read: model.safetensors" in str(caught.value)


def test_leftovers_of_old_releases_are_read_over(tmp_path: Path) -> None:
    state = write_hf(tmp_path)
    stored = {prefixed(n, "classic"): v for n, v in state.items()}
    stored["vision_tower.patch_positional_embedding.inv_freq"] = torch.ones(4)
    write_weights(tmp_path, stored, "model")
    assert_same(load(tmp_path).state_dict(), state)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write_hf(tmp_path, shards=2)
    twice = {prefixed(n, "classic"): v for n, v in random_llava().state_dict().items()}
    write_weights(tmp_path, twice, "whole")
    (tmp_path / "whole.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"is in model-00001-of-00002.safetensors and in model-00002-of-00002"):
        load(tmp_path)


def test_a_shard_of_another_checkpoint(tmp_path: Path) -> None:
    write_hf(tmp_path, shards=2)
    write_weights(tmp_path, {"vision_tower.ln_pre.weight": torch.ones(32)}, "other")
    (tmp_path / "other.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"names of the index are in no file \(.*not the ones the index was"):
        load(tmp_path)


def test_a_truncated_shard_is_refused_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path, shards=2)
    file = tmp_path / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    monkeypatch.setattr("pixtral.checkpoints.opening.build_empty", lambda *_: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is cut short: \d+ bytes of \d+"):
        load(tmp_path)


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_model_whose_file_has_the_output_layer_too(tmp_path: Path, equal: bool) -> None:
    config = llava_dict(tie_word_embeddings=True)
    state = write_hf(tmp_path, config=config)
    embeddings = state["model.language_model.embed_tokens.weight"]
    stored = {**state, "lm_head.weight": embeddings if equal else embeddings + 1}
    write_weights(tmp_path, {prefixed(n, "classic"): v.clone() for n, v in stored.items()}, "model")
    if equal:
        model = load(tmp_path)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    else:
        with pytest.raises(CheckpointError, match=r"ties .lm_head.weight. to .* different values"):
            load(tmp_path)


def test_a_tied_model_whose_file_has_only_the_output_layer(tmp_path: Path) -> None:
    state = write_hf(tmp_path, config=llava_dict(tie_word_embeddings=True))
    state["lm_head.weight"] = state.pop("model.language_model.embed_tokens.weight")
    write_weights(tmp_path, {prefixed(n, "classic"): v for n, v in state.items()}, "model")
    assert torch.equal(load(tmp_path).model.language_model.embed_tokens.weight, state["lm_head.weight"])


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantized_checkpoint_names_its_scheme(tmp_path: Path, key: str) -> None:
    write_hf(tmp_path)
    edit(tmp_path, **{key: {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(CheckpointError, match=r"weights are quantized \(gptq\); .*use the checkpoint in bf"):
        load(tmp_path)


def test_a_model_that_does_not_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path)
    size = sum(p.numel() for p in random_llava().parameters())
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: 3 * size)
    with pytest.raises(CheckpointError, match=r"needs 0.\d MB in float32, but .* on cpu; dtype=\"bfloat16\" needs"):
        load(tmp_path)
    assert load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: size)
    with pytest.raises(
        CheckpointError, match=r"available on cpu; device_map=\"auto\" with offload_folder=\.\.\. keeps"
    ):
        load(tmp_path, dtype="bfloat16")
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: size // 20)
    with pytest.raises(CheckpointError, match="no number format of the weights fits here"):
        load(tmp_path, dtype="bfloat16")


def test_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Linear has no checkpoint format; expected LlavaForCond"):
        load_model(torch.nn.Linear, tmp_path)


def test_subclasses_are_built(tmp_path: Path) -> None:
    class Mine(LlavaForConditionalGeneration):
        pass

    write_hf(tmp_path)
    assert type(load_model(Mine, tmp_path)) is Mine


def test_a_default_device_of_the_caller_changes_nothing(tmp_path: Path) -> None:
    state = write_mistral(tmp_path)
    with torch.device("meta"):
        model = load(tmp_path, dtype="float64")
    assert_same(model.state_dict(), {name: value.double() for name, value in state.items()})


def test_a_model_does_not_hang_on_its_files(tmp_path: Path) -> None:
    """Memory-mapped weights would change with the file."""
    state = write_hf(tmp_path)
    model = load(tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(bytes(size))
    assert_same(model.state_dict(), state)


PEAK = """
import sys, json, pathlib, torch
from pixtral.checkpoints import load_model
from pixtral.models.llava import LlavaForConditionalGeneration

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

small, folder, dtype = sys.argv[1:]
load_model(LlavaForConditionalGeneration, small, dtype=dtype)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = peak()
model = load_model(LlavaForConditionalGeneration, folder, dtype=dtype)
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"grown": peak() - before, "model": size, "compiler": "torch._dynamo" in sys.modules}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("layout", "dtype"), [("hf", "bfloat16"), ("mistral", "float32")])
def test_peak_memory_is_the_model_and_one_tensor(layout: str, dtype: str, tmp_path: Path) -> None:
    config = llava_dict(
        text={
            "vocab_size": 16384,
            "hidden_size": 1024,
            "intermediate_size": 6144,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "head_dim": 128,
        }
    )
    write = write_hf if layout == "hf" else write_mistral
    write(tmp_path / "small")
    state = build_empty(LlavaForConditionalGeneration, LlavaConfig.from_dict(copy.deepcopy(config))).state_dict()
    state = {name: torch.zeros(value.shape, dtype=torch.bfloat16) for name, value in state.items()}
    largest = max(value.nbytes for value in state.values())
    stored = {HF.spell(n) or n: v for n, v in state.items()} if layout == "hf" else native_state(state, config)
    write_weights(tmp_path / "large", stored, "model" if layout == "hf" else "consolidated", shards=3)
    write_small = "config.json" if layout == "hf" else "params.json"
    values = config if layout == "hf" else params_json(config)
    (tmp_path / "large" / write_small).write_text(json.dumps(values))
    arguments = [sys.executable, "-W", "error", "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large"), dtype]
    result = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    assert result["model"] > 200e6
    slack = 12e6
    assert result["grown"] <= result["model"] + (largest if dtype == "float32" else 0) + slack, (result, largest)
    assert not result["compiler"]  # importing it would cost every load a second


def test_the_bar_is_shown_on_terminals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, wanted in [(True, True), (False, True), (True, False)]:
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with byte_bar(wanted, 100, "Loading weights (hf layout)") as advance:
            advance(60)
            advance(40)
        assert ("Loading weights (hf layout)" in capsys.readouterr().err) == (terminal and wanted)
