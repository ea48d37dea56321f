"""Models in several places: the same numbers as in one, nothing of the disk's in memory, and clear refusals."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, native_state, params_json, write_hf, write_mistral, write_weights
from random_models import llava_dict, random_batch

from pixtral import LlavaForConditionalGeneration, MistralForCausalLM, PixtralVisionModel
from pixtral.checkpoints.names import HF
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig
from pixtral.errors import CheckpointError, ConfigError, MissingDependency

pytest.importorskip("accelerate")

PARTS = {
    "model.vision_tower": "disk",
    "model.multi_modal_projector": "cpu",
    "model.language_model.embed_tokens": "disk",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.layers.2.self_attn": "disk",
    "model.language_model.layers.2.mlp.up_proj": "disk",
    "model.language_model": "cpu",
    "lm_head": "disk",
}
WRITERS = {"hf": write_hf, "mistral": write_mistral}


def same_outputs(model: Any, other: Any, **inputs: Any) -> None:
    """All tensors of two forward passes, bit for bit."""
    with torch.no_grad():
        ours, theirs = model(**inputs), other(**inputs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(ours[name], value), name


def on_disk(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    "devices", [{"": "disk"}, PARTS, {"": "cpu", "model.vision_tower.transformer.layers.1": "disk"}]
)
def test_the_whole_model(
    layout: str, dtype: str | None, devices: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the kernels leave layers with accelerate's hooks to PyTorch, so here they also leave the plain model's
    monkeypatch.setattr("pixtral.layers.linear.runs_dense", lambda *_: False)
    WRITERS[layout](tmp_path)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=dtype, device_map=devices, offload_folder=tmp_path / "offload"
    )
    assert model.hf_device_map == devices
    assert model.device == torch.device("cpu") and model.dtype == plain.dtype
    waiting = on_disk(model)
    assert waiting
    batch = random_batch(model.config)
    same_outputs(model, plain, **batch.inputs(output_hidden_states=True))
    assert torch.equal(
        model.generate(**batch.inputs(), max_new_tokens=5), plain.generate(**batch.inputs(), max_new_tokens=5)
    )
    assert on_disk(model) == waiting  # given back after use


@pytest.mark.parametrize("layout", WRITERS)
def test_only_what_the_files_do_not_hold_is_written(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    WRITERS[layout](tmp_path)
    folder = tmp_path / "offload"
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map={"": "disk"}, offload_folder=folder)
    assert not caplog.records  # it is meant so
    written = {file.name for file in folder.glob("*/*")}
    rotated = {f"{name}.safetensors" for name in on_disk(model) if ".q_proj." in name or ".k_proj." in name}
    assert written == (set() if layout == "hf" else rotated)
    del model
    gc.collect()
    assert not list(folder.glob("*"))  # it goes with the model
    if layout == "mistral":
        with pytest.raises(ConfigError, match=r"keeps .* on the disk that .*Mistral's row order.*offload_folder=..."):
            LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map={"": "disk"})


def test_a_tower_and_a_decoder(tmp_path: Path) -> None:
    write_hf(tmp_path)
    images = [torch.randn(3, 16, 24), torch.randn(3, 8, 8)]
    plain = PixtralVisionModel.from_pretrained(tmp_path)
    tower = PixtralVisionModel.from_pretrained(tmp_path, device_map={"": "disk", "ln_pre": "cpu"})
    assert "patch_conv.weight" in on_disk(tower)
    same_outputs(tower, plain, pixel_values=images[0][None], output_hidden_states=True)
    with torch.no_grad():
        assert torch.equal(tower.encode(images), plain.encode(images))
    text = MistralForCausalLM.from_pretrained(tmp_path)
    decoder = MistralForCausalLM.from_pretrained(tmp_path, device_map={"model": "disk", "lm_head": "cpu"})
    same_outputs(decoder, text, input_ids=torch.randint(0, 90, (2, 7)))


@pytest.mark.parametrize("devices", [{"": "disk"}, {"": "cpu", "lm_head": "disk"}, {"": "disk", "lm_head": "cpu"}])
def test_tied_embeddings(devices: dict[str, str], tmp_path: Path) -> None:
    write_hf(tmp_path, config=llava_dict(tie_word_embeddings=True))
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map=devices)
    batch = random_batch(model.config)
    for _ in range(2):
        same_outputs(model, plain, **batch.inputs())


@pytest.mark.parametrize("equal", [True, False])
def test_tied_embeddings_that_the_files_hold_twice(equal: bool, tmp_path: Path) -> None:
    state = write_hf(tmp_path, config=llava_dict(tie_word_embeddings=True))
    head = state["model.language_model.embed_tokens.weight"] + (0 if equal else 1)
    stored = {HF.spell(name) or name: value for name, value in {**state, "lm_head.weight": head}.items()}
    write_weights(tmp_path, {name: value.clone() for name, value in stored.items()}, "model")
    if equal:
        assert on_disk(LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map={"": "disk"}))
    else:
        with pytest.raises(CheckpointError, match=r"ties .lm_head.weight. to .* different values"):
            LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map={"": "disk"})


@pytest.mark.parametrize("strategy", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_a_limit_on_memory(strategy: str, tmp_path: Path) -> None:
    write_hf(tmp_path)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    size = plain.get_memory_footprint()
    for limit in (size // 2, f"{size // 2}B"):
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map=strategy, max_memory={"cpu": limit})
        kept = sum(p.nbytes for p in model.parameters() if not p.is_meta)
        assert 0 < kept <= size // 2
        assert set(model.hf_device_map.values()) == {"cpu", "disk"}
        same_outputs(model, plain, **random_batch(model.config).inputs())
        for name in model.hf_device_map:  # no block is torn apart
            assert not ("layers." in name and name.count(".") > 3 + ("vision" in name)), name
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map=strategy, max_memory={"cpu": 3 * size})
    assert model.hf_device_map == {"": "cpu"} and not on_disk(model)


def test_as_transformers_places_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_hf(tmp_path)
    limit = {"cpu": LlavaForConditionalGeneration.from_pretrained(tmp_path).get_memory_footprint() // 2}
    arguments: dict[str, Any] = {"device_map": "auto", "max_memory": limit, "offload_folder": str(tmp_path / "offload")}
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path, **arguments)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, **arguments)
    found = {name: str(place) for name, place in theirs.hf_device_map.items() if not name.endswith("_embedding")}
    assert found == ours.hf_device_map  # their tables of positions are modules, ours are computed


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", WRITERS)
def test_saving_fetches_what_is_on_the_disk(layout: str, tied: bool, tmp_path: Path) -> None:
    if tied and layout == "mistral":
        pytest.skip("Mistral's layout has no tied embeddings")
    WRITERS[layout](tmp_path / "from", config=llava_dict(tie_word_embeddings=tied))
    state = LlavaForConditionalGeneration.from_pretrained(tmp_path / "from").state_dict()
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "from", device_map=PARTS, offload_folder=tmp_path / "offload"
    )
    batch = random_batch(model.config)
    with torch.no_grad():
        model(**batch.inputs())
    model.save_pretrained(tmp_path / "to", layout=layout, max_shard_size="50KB")
    assert_same(LlavaForConditionalGeneration.from_pretrained(tmp_path / "to").state_dict(), state)


def test_a_file_that_changes(tmp_path: Path) -> None:
    write_hf(tmp_path)
    model = PixtralVisionModel.from_pretrained(tmp_path, device_map={"": "disk"})
    file = tmp_path / "model.safetensors"
    copy_ = file.read_bytes()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors, which a loaded model reads from, is gone"):
        model.encode([torch.zeros(3, 8, 8)])
    file.write_bytes(copy_)
    with pytest.raises(CheckpointError, match=r"was changed after the model was loaded, .*load the model again"):
        model.encode([torch.zeros(3, 8, 8)])


def test_no_room_for_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mistral(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    arguments: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    with pytest.raises(CheckpointError, match=r"offload_folder .*offload has 0.0 MB free, but .* are to be written"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path, **arguments)
    (tmp_path / "offload").rmdir()
    (tmp_path / "offload").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path, **arguments)


def test_without_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for devices in ("auto", "cpu", {"": "cpu"}):
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path, device_map=devices)
        assert model.hf_device_map == {"": "cpu"}
    for arguments in ({"device_map": PARTS}, {"device_map": "auto", "max_memory": {"cpu": 100_000}}):
        with pytest.raises(MissingDependency, match=r"found no accelerate.* `pip install 'pixtral\[offload\]'`"):
            LlavaForConditionalGeneration.from_pretrained(tmp_path, **arguments)


def test_quantized_layers_stay_on_the_cpu(tmp_path: Path) -> None:
    wide = llava_dict(text={"hidden_size": 64, "intermediate_size": 64})
    write_hf(tmp_path, config=wide)
    with pytest.raises(ConfigError, match=r"int4 layers compute on the CPU alone, but .* on 'disk'; leave device_map"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization="int4", device_map={"": "disk"})
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization="int4", device_map={"": "cpu", "model.vision_tower": "disk"}
    )
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization="int4")
    same_outputs(model, plain, **random_batch(model.config).inputs())
    with pytest.raises(CheckpointError, match=r"needs .* in int4, but 0.0 MB are available on cpu"):
        LlavaForConditionalGeneration.from_pretrained(
            tmp_path, quantization="int4", device_map="auto", max_memory={"cpu": 1000}
        )


SEVERAL = """
import sys, warnings
import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch._subclasses.fake_tensor import FakeTensorMode
from pixtral.checkpoints.offload import attach
from pixtral.checkpoints.offload import Offloaded
from pixtral.checkpoints.placement import Placement, device_of
from pixtral.configuration import LlavaConfig
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.padded import new_cache
from random_models import llava_dict

warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
_setup_privateuseone_for_python_backend("fake")  # devices that know shapes, and refuse to mix
A, B = "fake:0", "fake:1"
placement = Placement({
    "model.vision_tower": A, "model.vision_tower.transformer.layers.1": B, "model.multi_modal_projector": B,
    "model.language_model.embed_tokens": B, "model.language_model.layers.0": A, "model.language_model.layers.1": B,
    "model.language_model.layers.2": A, "model.language_model.norm": B, "lm_head": B,
})
first, second = torch.device(A), torch.device(B)
with FakeTensorMode(), torch.no_grad():
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(llava_dict())).eval()
    for name, p in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        value = torch.nn.Parameter(torch.empty(p.shape, device=device_of(placement.of(name))))
        model.get_submodule(path).register_parameter(leaf, value)
    attach(model, placement, Offloaded(None))
    assert model.device == first, model.device
    features = model.encode_images([torch.zeros(3, 16, 12, device=A), torch.zeros(3, 8, 8)])
    assert [f.shape[0] for f in features] == [12, 4]
    ids = torch.zeros(7, dtype=torch.long, device=A)
    embeds = model.embed(ids)
    cache = new_cache(model.text_config, 1, 8, embeds)
    hidden = model.forward_packed(embeds, torch.arange(7, device=A), cache.packing([7]), cache)
    assert embeds.device == hidden.device == model.logits(hidden).device == first
    assert [layer.keys.device for layer in cache.layers] == [first, second, first]
    hidden = model.forward_packed(embeds[:1], torch.arange(1, device=A), cache.packing([1]), cache)
    assert hidden.shape == (1, 40) and cache.lengths == [8]
print("done")
"""


def test_several_devices() -> None:
    """On devices without values: what matters is that no operation ever sees two of them."""
    pytest.importorskip("torch.utils.backend_registration", reason="PyTorch has no devices in Python yet")
    command = [sys.executable, "-c", SEVERAL]
    path = [str(Path(__file__).parents[2]), *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(filter(None, path))})
    assert done.stdout == "done\n", done.stderr


PEAK = """
import json, pathlib, sys, torch
from pixtral import MistralForCausalLM

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

small, folder, limit, offload = sys.argv[1:]
ids = torch.zeros(1, 3, dtype=torch.long)
def run(where, memory):
    model = MistralForCausalLM.from_pretrained(
        where, device_map="auto", max_memory={"cpu": memory}, offload_folder=offload, dtype="bfloat16"
    )
    model(input_ids=ids)
    return model
run(small, 20000)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = peak()
model = run(folder, limit)
disk = sum(p.nbytes for p in model.parameters() if p.is_meta)
print(json.dumps({"grown": peak() - before, "disk": disk, "all": model.get_memory_footprint()}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_what_is_on_the_disk_is_not_in_memory(tmp_path: Path) -> None:
    """In Mistral's layout: some tensors stay in the checkpoint, others are written anew."""
    config = llava_dict(
        text={
            "vocab_size": 8192,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "head_dim": 64,
        }
    )
    write_mistral(tmp_path / "small")
    state = build_empty(LlavaForConditionalGeneration, LlavaConfig.from_dict(copy.deepcopy(config))).state_dict()
    state = {name: torch.zeros(value.shape, dtype=torch.bfloat16) for name, value in state.items()}
    write_weights(tmp_path / "large", native_state(state, config), "consolidated")
    (tmp_path / "large" / "params.json").write_text(json.dumps(params_json(config)))
    limit = 90_000_000
    arguments = [str(tmp_path / "small"), str(tmp_path / "large"), str(limit), str(tmp_path / "offload")]
    done = subprocess.run([sys.executable, "-W", "error", "-c", PEAK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["all"] > 250e6 and result["disk"] > 160e6
    assert result["grown"] <= limit + 12e6, result
