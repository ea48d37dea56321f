"""Weights in 4 and 8 bits: quantized while they stream from every layout, stored and read back, and refused by name."""

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
from checkpoint_files import assert_same, prefixed, write_hf, write_mistral, write_weights
from random_models import packable_dict
from safetensors.torch import load_file, save_file

from pixtral.checkpoints import load_model, save_model
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig, QuantizationConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.layers.linear import QuantizedLinear
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel
from pixtral.ops.quantized_weight import dequantize_weight, quantize_weight
from pixtral.quantization import QuantizationArguments

INT4, ALL = QuantizationArguments("int4"), QuantizationArguments("int4", quantize_vision=True)
LAYOUTS: dict[str, Callable[[Path, dict[str, Any]], dict[str, torch.Tensor]]] = {
    "hf classic": lambda folder, config: write_hf(folder, config=config),
    "hf nested, shards": lambda folder, config: write_hf(folder, "nested", shards=3, config=config),
    "mistral": lambda folder, config: write_mistral(folder, config=config),
    "mistral, shards": lambda folder, config: write_mistral(folder, shards=3, config=config),
}


def load(folder: Path, asked: QuantizationArguments | None = None, **arguments: Any) -> LlavaForConditionalGeneration:
    return load_model(LlavaForConditionalGeneration, folder, asked=asked, **arguments)


def quantized_state(state: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model's state_dict must be when its quantized layers are made from these weights."""
    expected = dict(state)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            made = quantize_weight(expected.pop(f"{name}.weight"), layer.bits, layer.group_size)
            expected |= {f"{name}.{part}": getattr(made, part) for part in ("codes", "scales", "row_scales")}
    return expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_quantized_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of q and k are put into our order before they are quantized, whole heads to a block."""
    monkeypatch.setattr("pixtral.quantization.base.BLOCK_BYTES", 4000)
    state = LAYOUTS[name](tmp_path, packable_dict())
    model = load(tmp_path, ALL)
    assert_same(model.state_dict(), quantized_state(state, model))
    assert sum(isinstance(layer, QuantizedLinear) for layer in model.modules()) == 3 * 7 * 2 + 3
    assert not model.training
    assert model.quantizer.config == QuantizationConfig(quantize_vision=True)  # type: ignore[union-attr]
    assert model.config.quantization_config == QuantizationConfig(quantize_vision=True).to_dict()


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_it_computes_with_the_weights_that_it_holds(quantization: str, tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict())
    model, plain = load(tmp_path, QuantizationArguments(quantization, True, "bf16")), load(tmp_path)
    ids, pixels = torch.tensor([[20, 10, 10, 12, 10, 10, 13, 33, 50]]), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLinear):
                plain.get_submodule(name).weight.copy_(dequantize_weight(layer.quantized_weight, torch.float32))  # type: ignore[operator, union-attr]
        expected = plain(input_ids=ids, pixel_values=pixels).logits
        assert (model(input_ids=ids, pixel_values=pixels).logits - expected).norm() < 1e-4 * expected.norm()
        fast = load(tmp_path, QuantizationArguments(quantization, True))(input_ids=ids, pixel_values=pixels).logits
    assert 1e-3 * expected.norm() < (fast - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("files", ["the embeddings", "the output layer", "both"])
@pytest.mark.parametrize("stored", [False, True])
def test_tied_embeddings_become_a_quantized_copy(files: str, stored: bool, tmp_path: Path) -> None:
    config = packable_dict(tie_word_embeddings=True)
    state = write_hf(tmp_path, config=config)
    embeddings = state["model.language_model.embed_tokens.weight"]
    if files != "the embeddings":
        state["lm_head.weight"] = embeddings.clone()
    if files == "the output layer":
        del state["model.language_model.embed_tokens.weight"]
    write_weights(tmp_path, {prefixed(n, "classic"): v for n, v in state.items()}, "model")
    model = load(tmp_path, INT4)
    if stored:
        save_model(model, tmp_path / "quantized")
        model = load(tmp_path / "quantized")
    assert model.config.tie_word_embeddings
    assert torch.equal(model.model.language_model.embed_tokens.weight, embeddings)
    assert isinstance(model.lm_head, QuantizedLinear)
    assert torch.equal(model.lm_head.codes, quantize_weight(embeddings, 8, 64).codes)


def test_tied_embeddings_that_differ_are_refused(tmp_path: Path) -> None:
    state = write_hf(tmp_path, config=packable_dict(tie_word_embeddings=True))
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"] + 1
    write_weights(tmp_path, {prefixed(n, "classic"): v for n, v in state.items()}, "model")
    with pytest.raises(CheckpointError, match=r"ties .lm_head.weight. to .* different values"):
        load(tmp_path, INT4)


def test_an_output_layer_that_is_left_alone_stays_tied(tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict(tie_word_embeddings=True))
    model = load(tmp_path, QuantizationArguments(config=QuantizationConfig(lm_head_bits=16)))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    save_model(model, tmp_path / "quantized")
    again = load(tmp_path / "quantized")
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("cls", [MistralForCausalLM, PixtralVisionModel])
@pytest.mark.parametrize("vision", [True, False])
def test_a_part_of_a_whole_model(cls: Any, vision: bool, tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict())
    whole = load(tmp_path, QuantizationArguments("int4", vision))
    save_model(whole, tmp_path / "quantized")
    part = load_model(cls, tmp_path / "quantized")
    inside = whole.model.vision_tower if cls is PixtralVisionModel else None
    if inside is not None:
        assert_same(part.state_dict(), inside.state_dict())
        assert (part.quantizer is not None) == vision
        assert (part.config.quantization_config is not None) == vision
    else:
        names = {n.replace("model.language_model.", "model."): v for n, v in whole.state_dict().items()}
        assert_same(part.state_dict(), {name: names[name] for name in part.state_dict()})
    if part.quantizer is not None:
        save_model(part, tmp_path / "alone")
        assert_same(load_model(cls, tmp_path / "alone").state_dict(), part.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_stored_and_read_back(dtype: str, shard: str, tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict())
    model = load(tmp_path, ALL, dtype=dtype)
    written = save_model(model, tmp_path / "quantized", max_shard_size=shard)
    assert (len([path for path in written if path.suffix == ".safetensors"]) > 3) == (shard == "30KB")
    again = load(tmp_path / "quantized")
    assert_same(again.state_dict(), model.state_dict())
    assert again.dtype == model.dtype
    assert again.quantizer.stored  # type: ignore[union-attr]
    ids = torch.randint(20, 90, (1, 5))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    save_model(again, tmp_path / "again", max_shard_size=shard)
    for path in (tmp_path / "quantized").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_names_and_places_in_the_file(tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict())
    model = load(tmp_path, INT4, dtype="bfloat16")
    save_model(model, tmp_path / "quantized")
    values = json.loads((tmp_path / "quantized" / "config.json").read_text())
    assert values["quantization_config"] == QuantizationConfig().to_dict()
    assert values["dtype"] == "bfloat16"
    file = tmp_path / "quantized" / "model.safetensors"
    stored = load_file(file)
    assert_same(stored, {prefixed(n, "classic"): v for n, v in model.state_dict().items()})
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(start - 8))
    assert start % 64 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            assert first % min(64, (last - first) & (first - last)) == 0, name


def test_a_stored_model_is_mapped_and_keeps_its_file_as_it_is(tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict())
    save_model(load(tmp_path, ALL), tmp_path / "quantized")
    before = (tmp_path / "quantized" / "model.safetensors").read_bytes()
    model = load(tmp_path / "quantized")
    maps = Path("/proc/self/maps")
    if maps.exists():
        found = [line for line in maps.read_text().splitlines() if str(tmp_path / "quantized") in line]
        assert found
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert (tmp_path / "quantized" / "model.safetensors").read_bytes() == before
    save_model(load(tmp_path / "quantized"), tmp_path / "quantized")  # over the file that it is mapped from
    assert (tmp_path / "quantized" / "model.safetensors").read_bytes() == before


def test_a_stored_model_in_another_dtype(tmp_path: Path) -> None:
    """What is quantized stays; the rest is converted and computes in that dtype."""
    write_hf(tmp_path, config=packable_dict())
    save_model(load(tmp_path, INT4), tmp_path / "quantized")
    plain, other = load(tmp_path / "quantized"), load(tmp_path / "quantized", dtype="bfloat16")
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    for name, value in plain.named_buffers():
        assert torch.equal(other.get_buffer(name), value), name
    ids = torch.randint(20, 90, (1, 5))
    with torch.no_grad():
        assert other(input_ids=ids).logits.dtype == torch.bfloat16
        assert other.config.dtype == "bfloat16"


def test_mistrals_layout_holds_no_quantized_weights(tmp_path: Path) -> None:
    write_hf(tmp_path, config=packable_dict())
    model = load(tmp_path, INT4)
    with pytest.raises(
        ConfigError, match="quantized weights have no form in Mistral's layout; save them with layout='"
    ):
        save_model(model, tmp_path / "out", layout="mistral")
    assert not (tmp_path / "out").exists()
    write_mistral(tmp_path / "native", config=packable_dict())
    file = tmp_path / "native" / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "pixtral"}}))
    with pytest.raises(CheckpointError, match="Mistral's layout is read in full precision only"):
        load(tmp_path / "native")


Q = "language_model.model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, torch.Tensor]], object]
MISFITS: dict[str, tuple[Change, str]] = {
    "a scale tensor missing": (
        lambda s: s.pop(f"{Q}.scales"),
        r"1 parameters missing \(model.language_model.layers.0.self_attn.q_proj.scales\)",
    ),
    "codes missing": (lambda s: s.pop(f"{Q}.codes"), r"1 parameters missing \(.*q_proj.codes\)"),
    "codes of another shape": (
        lambda s: s.update({f"{Q}.codes": s[f"{Q}.codes"][1:].clone()}),
        r"q_proj.codes: found \[5, 8, 64\] uint8, expected \[6, 8, 64\] uint8",
    ),
    "scales of another type": (
        lambda s: s.update({f"{Q}.scales": s[f"{Q}.scales"].float()}),
        r"q_proj.scales: found \[6, 1, 16\] float32, expected \[6, 1, 16\] int8",
    ),
    "a full weight in their place": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith(Q)] and s.update({f"{Q}.weight": torch.ones(96, 64)}),
        r"3 parameters missing \(.*q_proj.codes, .*\); 1 unexpected names \(.*q_proj.weight\)",
    ),
    "a bias missing": (
        lambda s: s.pop("multi_modal_projector.linear_1.bias"),
        r"1 parameters missing \(model.multi_modal_projector.linear_1.bias\)",
    ),
    "codes of a layer too many": (
        lambda s: s.update({Q.replace("0", "3") + ".codes": torch.zeros(1, dtype=torch.uint8)}),
        r"1 unexpected names \(language_model.model.layers.3.self_attn.q_proj.codes\)",
    ),
}


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A stored model in 4 bits, the tower and the projector in 8."""
    write_hf(tmp_path / "plain", config=packable_dict())
    save_model(load(tmp_path / "plain", ALL), tmp_path / "quantized")
    return tmp_path / "quantized"


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_named(name: str, quantized: Path) -> None:
    change, says = MISFITS[name]
    state = load_file(quantized / "model.safetensors")
    change(state)
    save_file(state, quantized / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        load(quantized)


def test_files_of_other_programs_need_not_be_aligned(quantized: Path) -> None:
    expected = load(quantized).state_dict()
    save_file(load_file(quantized / "model.safetensors"), quantized / "model.safetensors", {"format": "pt", "x": "y"})
    assert_same(load(quantized).state_dict(), expected)


def test_a_truncated_file(quantized: Path) -> None:
    file = quantized / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut short: \d+ bytes of \d+"):
        load(quantized)


def test_a_newer_version_and_another_configuration(quantized: Path) -> None:
    file = quantized / "config.json"
    values = json.loads(file.read_text())

    def with_(**change: Any) -> None:
        file.write_text(json.dumps(values | {"quantization_config": values["quantization_config"] | change}))

    with_(version=3)
    with pytest.raises(ConfigError, match="version 3 of pixtral's format; this release reads version 2: upgrade"):
        load(quantized)
    with_(version=1)
    with pytest.raises(ConfigError, match="version 1 of pixtral's format; this release reads version 2: quantize the"):
        load(quantized)
    with_(bits=8)
    with pytest.raises(CheckpointError, match=r"q_proj.codes: found \[6, 8, 64\] uint8, expected \[6, 16, 64\] uint8"):
        load(quantized)
    with_(group_size=32)
    with pytest.raises(CheckpointError, match=r"q_proj.scales: found \[4, 1, 16\] int8, expected \[4, 2, 16\] int8"):
        load(quantized)
    file.write_text(json.dumps(values | {"quantization_config": "int4"}))
    with pytest.raises(ConfigError, match="has quantization_config 'int4'; expected an object"):
        load(quantized)
    del values["quantization_config"]
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"unexpected names .*The extra names look like a quantized checkpoint"):
        load(quantized)


def test_to_something_else_than_it_is(quantized: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json says the weights are quantized already, as .*bits=4"):
        load(quantized, QuantizationArguments("int8"))
    assert load(quantized, ALL).quantizer.stored  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    state = write_hf(tmp_path, config=packable_dict())
    state["model.language_model.layers.1.mlp.up_proj.weight"][3, 4] = value
    write_weights(tmp_path, {prefixed(n, "classic"): v for n, v in state.items()}, "model")
    says = r"model.safetensors: 'language_model.model.layers.1.mlp.up_proj.weight' cannot be quantized: "
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path, INT4)


def test_memory_is_that_of_the_quantized_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by what quantized weights take; what would fit is named."""
    write_hf(tmp_path, config=packable_dict())
    plain, quantized = load(tmp_path), load(tmp_path, INT4)
    assert quantized.num_parameters() == plain.num_parameters()
    assert plain.get_memory_footprint() == 4 * plain.num_parameters()
    state = quantized.state_dict()
    assert quantized.get_memory_footprint() == sum(value.nbytes for value in state.values())
    embeddings = state["model.language_model.embed_tokens.weight"].nbytes  # mapped: only rows in use take memory
    room = quantized.get_memory_footprint() - embeddings
    monkeypatch.setattr("pixtral.quantization.groupwise.GroupwiseQuantizer.work_bytes", lambda *_: 0)
    monkeypatch.setattr("pixtral.checkpoints.fill._block_bytes", lambda info: 0)
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: room)
    assert_same(load(tmp_path, INT4).state_dict(), state)
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: room - 1)
    with pytest.raises(CheckpointError, match=r"needs 0.\d MB in int4, but 0.\d MB are available on cpu"):
        load(tmp_path, INT4)


PEAK = """
import sys, json, math, pathlib, torch
from pixtral.checkpoints import load_model
from pixtral.checkpoints.layout import find
from pixtral.checkpoints.quantize import quantize_checkpoint
from pixtral.configuration import QuantizationConfig
from pixtral.models import NETWORKS
from pixtral.models.llava import LlavaForConditionalGeneration as Model
from pixtral.ops.quantized_weight import QuantizedWeight, quantized_shapes
from pixtral.quantization import QuantizationArguments, base, groupwise

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def quantize_weight(rows, bits, group_size):  # the loader's memory is looked at, not the search for scales
    shapes = quantized_shapes(bits, group_size, *rows.shape)
    return QuantizedWeight(bits, group_size, *rows.shape, *(torch.zeros(s, dtype=d) for d, s in shapes.values()))

what, small, large, out = sys.argv[1:]
groupwise.quantize_weight = quantize_weight
base.BLOCK_BYTES = 4_000_000
asked = None if what == "stored" else QuantizationArguments("int4")
if what != "quantize":
    load_model(Model, small, asked=asked)
else:
    quantize_checkpoint(find(pathlib.Path(small)), pathlib.Path(out + "-small"), QuantizationConfig(), NETWORKS)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before, files = status("VmRSS"), status("RssFile")
if what == "quantize":
    made = quantize_checkpoint(find(pathlib.Path(large)), pathlib.Path(out), QuantizationConfig(), NETWORKS)
    size = made.after
else:
    model = load_model(Model, large, asked=asked)
    size = model.get_memory_footprint()
grown = status("VmHWM") - before
if what != "stored":  # which pages of libraries are mapped is the system's business
    grown -= max(0, status("RssFile") - files)
print(json.dumps({"grown": grown, "model": size}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_the_quantized_model_and_a_block(tmp_path: Path) -> None:
    """Also with an output layer that is most of the model; a stored model takes no memory before it is used."""
    config = packable_dict(
        text={"vocab_size": 65536, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2}
    )
    write_hf(tmp_path / "small", config=packable_dict())
    empty = build_empty(LlavaForConditionalGeneration, LlavaConfig.from_dict(copy.deepcopy(config))).state_dict()
    state = {prefixed(n, "classic"): torch.zeros(v.shape, dtype=torch.bfloat16) for n, v in empty.items()}
    write_weights(tmp_path / "large", state, "model", shards=2)
    (tmp_path / "large" / "config.json").write_text(json.dumps(config))
    head, embeddings = 65536 * 1024, 2 * 65536 * 1024
    results = {}
    for what in ("load", "quantize", "stored"):
        small, large = ("out-small", "out") if what == "stored" else ("small", "large")
        arguments = [sys.executable, "-W", "error", "-c", PEAK, what]
        folders = [str(tmp_path / small), str(tmp_path / large), str(tmp_path / "out")]
        ran = subprocess.run([*arguments, *folders], check=True, capture_output=True, text=True)
        results[what] = json.loads(ran.stdout)
    # Buffers lie in pages of 2 MiB, the last counted whole, and libraries have some of their own, by the machine's
    # threads. It is half of the smallest tensor that could be held twice, the output layer in 8 bits.
    slack = head / 2
    assert results["load"]["model"] > head + embeddings
    assert results["load"]["grown"] < results["load"]["model"] - embeddings + slack, results
    assert results["quantize"]["grown"] < max(head, embeddings) + slack, results  # one after the other
    assert results["stored"]["grown"] < slack, results
