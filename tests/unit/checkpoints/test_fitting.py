"""Whether a model fits is known before anything is read: 12 billion parameters from headers over empty files."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pixtral import LlavaForConditionalGeneration, MistralForCausalLM, PixtralVisionModel
from pixtral.checkpoints import fill, memory
from pixtral.checkpoints.names import HF
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig
from pixtral.errors import CheckpointError

GB = 10**9
BIG = {
    "model_type": "llava",
    "image_token_index": 10,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_config": {"model_type": "pixtral", "hidden_act": "silu", "rope_theta": 10000.0},
    "text_config": {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e9,
        "sliding_window": None,
    },
}


@pytest.fixture(scope="module")
def pixtral_12b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says it holds Pixtral-12B; its file is a header and a hole."""
    folder = tmp_path_factory.mktemp("12b")
    state = build_empty(LlavaForConditionalGeneration, LlavaConfig.from_dict(json.loads(json.dumps(BIG)))).state_dict()
    header, end = {}, 0
    for name, value in state.items():
        start, end = end, end + 2 * math.prod(value.shape)
        header[HF.spell(name)] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(BIG))
    return folder


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Device -> bytes; nothing may be read."""
    free = {"cpu": 24 * GB}
    monkeypatch.setattr(memory, "available_memory", lambda device: free[str(device)])
    monkeypatch.setattr(fill, "read_tensor", lambda *_: pytest.fail("a tensor was read"))
    return free


def refusal(folder: Path, cls: Any = LlavaForConditionalGeneration, **arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        cls.from_pretrained(folder, **arguments)
    return str(caught.value)


def test_12b_on_24_gigabytes(pixtral_12b: Path, available: dict[str, int]) -> None:
    """The two settings that fit, with what they take."""
    for arguments in ({}, {"device_map": "auto"}, {"device_map": {"": "cpu"}}):
        assert refusal(pixtral_12b, **arguments) == (
            "the model needs 25.4 GB in bfloat16, but 24.0 GB are available on cpu; "
            'quantization="int4" needs 8.7 GB and fits; '
            'device_map="auto" with offload_folder=... keeps up to 21.6 GB in memory and reads the rest from the disk'
        )
    decoder = refusal(pixtral_12b, MistralForCausalLM, dtype="float32")
    assert decoder.startswith("the model needs 49.0 GB in float32 and 1.3 GB more while it is read, but 24.0 GB")
    assert "dtype" not in decoder.partition(";")[2]  # 24.5 GB do not fit either


def test_only_what_fits_is_named(pixtral_12b: Path, available: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    available["cpu"] = 30 * GB
    assert 'available on cpu; dtype="bfloat16" needs 25.4 GB and fits; ' in refusal(pixtral_12b, dtype="float32")
    available["cpu"] = 7 * GB
    said = refusal(pixtral_12b)
    assert "int4" not in said and 'on cpu; device_map="auto" with offload_folder=... keeps up to 6.3 GB' in said
    assert refusal(pixtral_12b, quantization="int8").endswith("use a machine with more memory, or close other programs")
    available["cpu"] = 12 * GB
    assert refusal(pixtral_12b, quantization="int8").endswith('on cpu; quantization="int4" needs 8.7 GB and fits')
    available["cpu"] = 2 * GB
    assert refusal(pixtral_12b).endswith("use a machine with more memory, or close other programs")
    available["cpu"] = int(0.5 * GB)
    tower = refusal(pixtral_12b, PixtralVisionModel)
    assert "needs 807.0 MB" in tower and "int4" not in tower
    monkeypatch.setitem(sys.modules, "accelerate", None)
    available["cpu"] = 24 * GB
    assert refusal(pixtral_12b).endswith("from the disk, after `pip install 'pixtral[offload]'`")


@pytest.mark.parametrize("arguments", [{"offload_folder": "disk"}, {"max_memory": {"cpu": "20GB"}}])
def test_the_disk_takes_what_finds_no_room(
    arguments: dict[str, Any], pixtral_12b: Path, available: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    placed: list[Any] = []

    def stop(model: Any, plan: Any, contents: Any, target: Any, progress: bool) -> None:
        placed.append(target.placement)
        raise CheckpointError("far enough")

    monkeypatch.setattr("pixtral.checkpoints.load.fill", stop)
    assert refusal(pixtral_12b, device_map="auto", **arguments) == "far enough"
    places = placed[0].devices
    assert places["model.language_model.layers.0"] == "cpu" and places["lm_head"] == "disk"
    layers = [name for name, place in places.items() if re.search(r"layers\.\d+$", name) and place == "cpu"]
    assert len(layers) == (
        33 if "offload_folder" in arguments else 30
    )  # 90 % of 24 GB, or 20 GB, and room for the largest


def test_what_comes_from_the_disk_needs_room_for_a_while(pixtral_12b: Path, available: dict[str, int]) -> None:
    """The output layer, 1.3 GB, is brought into memory for every token."""
    pytest.importorskip("accelerate")
    devices = {"": "disk", "model.vision_tower": "cpu"}
    available["cpu"] = int(2.1 * GB)
    assert "needs 807.0 MB in bfloat16 and 1.3 GB more while it is read" in refusal(pixtral_12b, device_map=devices)


def test_several_gpus(pixtral_12b: Path, available: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Placement alone: one GPU if the model fits there, else all, else the CPU's memory as well."""
    pytest.importorskip("accelerate")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    placed: list[Any] = []

    def stop(model: Any, plan: Any, contents: Any, target: Any, progress: bool) -> None:
        placed.append(target.placement)
        raise CheckpointError("far enough")

    monkeypatch.setattr("pixtral.checkpoints.load.fill", stop)
    found: dict[int, set[Any]] = {}
    for size in (40, 20, 10):
        available |= {"cuda:0": size * GB, "cuda:1": size * GB}
        assert refusal(pixtral_12b, device_map="auto") == "far enough"
        found[size] = set(placed[-1].devices.values())
    assert found == {40: {0}, 20: {0, 1}, 10: {0, 1, "cpu"}}
    assert refusal(pixtral_12b, device_map="auto", quantization="int4") == "far enough"
    assert placed[-1].devices == {"": "cpu"}  # quantized layers compute there
    assert 'device_map="cpu"' not in refusal(pixtral_12b, device_map=1)
    available["cpu"] = 30 * GB
    assert '10.0 GB are available on cuda:1; quantization="int4"' in refusal(pixtral_12b, device_map=1)
    assert 'device_map="cpu" needs 25.4 GB and fits' in refusal(pixtral_12b, device_map=1)
