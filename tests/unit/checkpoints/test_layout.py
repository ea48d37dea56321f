"""Which files make up a checkpoint, in every layout of folder, and what each incomplete folder says."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from checkpoint_files import fake_hub, use_hub, write_hf, write_mistral, write_weights

from pixtral.checkpoints.layout import fetch, find
from pixtral.errors import CheckpointError, ConfigError


def names(folder: Path, layout: str = "auto") -> list[str]:
    found = find(folder, layout)  # type: ignore[arg-type]
    assert found.config.parent == folder
    return [found.layout, found.config.name, *(file.name for file in found.weights)]


def test_hugging_face_in_one_file(tmp_path: Path) -> None:
    write_hf(tmp_path)
    assert names(tmp_path) == ["hf", "config.json", "model.safetensors"]


@pytest.mark.parametrize("index", [True, False])
def test_hugging_face_in_shards(tmp_path: Path, index: bool) -> None:
    state = write_hf(tmp_path, shards=3, index=index)
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert names(tmp_path) == ["hf", "config.json", *shards]
    assert len(find(tmp_path).promised) == (len(state) if index else 0)


def test_mistral_in_one_file(tmp_path: Path) -> None:
    write_mistral(tmp_path)
    assert names(tmp_path) == ["mistral", "params.json", "consolidated.safetensors"]


def test_mistral_in_shards(tmp_path: Path) -> None:
    write_mistral(tmp_path, shards=2)
    shards = [f"consolidated-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert names(tmp_path) == ["mistral", "params.json", *shards]


def test_both_layouts_read_one_and_say_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_hf(tmp_path)
    write_mistral(tmp_path)
    with caplog.at_level(logging.INFO, "pixtral"):
        assert names(tmp_path) == ["hf", "config.json", "model.safetensors"]
    assert "holds two layouts; reading 'hf' and leaving 'mistral'" in caplog.text
    assert find(tmp_path).also == "mistral"
    assert names(tmp_path, "mistral") == ["mistral", "params.json", "consolidated.safetensors"]
    assert find(tmp_path, "mistral").also is None


def test_the_layout_that_is_complete_is_taken(tmp_path: Path) -> None:
    """Mistral's weights beside Hugging Face's config, and the other way round."""
    write_mistral(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert names(tmp_path)[0] == "mistral"
    write_weights(tmp_path, {"a": torch.ones(1)}, "model")
    (tmp_path / "config.json").unlink()
    assert names(tmp_path)[0] == "mistral"


def test_a_whole_file_wins_over_shards(tmp_path: Path) -> None:
    """As in transformers."""
    write_hf(tmp_path, shards=2)
    write_hf(tmp_path)
    assert names(tmp_path) == ["hf", "config.json", "model.safetensors"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write_hf(tmp_path)
    for name in ("model_lora.safetensors", "adapter_model.safetensors", "model-old.safetensors", "optimizer.bin"):
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path) == ["hf", "config.json", "model.safetensors"]


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights in .*expected config.json with model.safetensors .*nothing"):
        find(tmp_path)


def test_a_folder_of_other_things_lists_them(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"Found there: 00.txt, .*07.txt and 4 more"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"only as pickles .*never opened; convert them"):
        find(tmp_path)


@pytest.mark.parametrize(("layout", "name"), [("hf", "config.json"), ("mistral", "params.json")])
def test_a_missing_configuration(tmp_path: Path, layout: str, name: str) -> None:
    (write_hf if layout == "hf" else write_mistral)(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"\*.safetensors but no {name}; put the model's {name} beside"):
        find(tmp_path)


def test_asking_for_the_layout_that_is_not_there(tmp_path: Path) -> None:
    write_hf(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"expected params.json with consolidated.safetensors .*model.safetensors"
    ):
        find(tmp_path, "mistral")
    with pytest.raises(ConfigError, match="layout is 'gguf'; expected 'auto', 'hf' or 'mistral'"):
        find(tmp_path, "gguf")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard(tmp_path: Path, index: bool) -> None:
    write_hf(tmp_path, shards=3, index=index)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 weight files: model-00002-of-00003.safetensors; fetch"):
        find(tmp_path)


def test_a_missing_shard_points_to_the_other_layout(tmp_path: Path) -> None:
    write_hf(tmp_path, shards=3)
    write_mistral(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="or pass layout='mistral', which is here too"):
        find(tmp_path)


def test_shards_of_two_checkpoints(tmp_path: Path) -> None:
    write_hf(tmp_path, shards=3, index=False)
    write_hf(tmp_path, shards=2, index=False)
    with pytest.raises(CheckpointError, match="mixes shards of different counts"):
        find(tmp_path)


def test_the_index_decides_among_shards(tmp_path: Path) -> None:
    write_hf(tmp_path, shards=3, index=False)
    write_hf(tmp_path, shards=2)
    assert len(find(tmp_path).weights) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a shard index"),
        ("[]", "is not a shard index"),
        ('{"metadata": {}}', "is not a shard index"),
        ('{"weight_map": {}}', "no usable weight_map"),
        ('{"weight_map": {"a": 1}}', "no usable weight_map"),
        ('{"weight_map": {"a": "../../etc/model.safetensors"}}', "expected safetensors files in the same folder"),
        ('{"weight_map": {"a": "model.bin"}}', "expected safetensors files in the same folder"),
    ],
)
def test_a_broken_index(tmp_path: Path, text: str, says: str) -> None:
    write_hf(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=says):
        find(tmp_path)


def repository(folder: Path, *, hf: bool = True, mistral: bool = True, shards: int = 1) -> Path:
    folder.mkdir()
    if hf:
        write_hf(folder, shards=shards)
    if mistral:
        write_mistral(folder, shards=shards)
    (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    ("hf", "mistral", "layout", "expected"),
    [
        (True, True, "auto", "hf"),
        (True, True, "mistral", "mistral"),
        (True, False, "auto", "hf"),
        (False, True, "auto", "mistral"),
    ],
)
def test_only_one_layout_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hf: bool, mistral: bool, layout: str, expected: str, shards: int
) -> None:
    with fake_hub(repository(tmp_path / "repo", hf=hf, mistral=mistral, shards=shards)) as (address, fetched):
        use_hub(monkeypatch, address, tmp_path / "cache")
        files = fetch("team/model", layout)  # type: ignore[arg-type]
    assert files.layout == expected
    weights = sorted(name for name in fetched if name.endswith(".safetensors"))
    assert weights == [file.name for file in files.weights]
    assert len(weights) == shards
    assert "pytorch_model.bin" not in fetched


def test_a_repository_whose_config_has_no_weights_of_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral publishes config.json beside consolidated.safetensors alone."""
    folder = repository(tmp_path / "repo", hf=False)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with fake_hub(folder) as (address, _):
        use_hub(monkeypatch, address, tmp_path / "cache")
        assert fetch("team/model").layout == "mistral"
