"""Saving: bit for bit back in both layouts, shards, and nothing half-written after a failure or a kill."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_same, native_state, params_json, prefixed
from random_models import VARIANTS, llava_dict, random_llava
from safetensors.torch import load_file
from torch import nn

from pixtral.checkpoints import load_model, save_model
from pixtral.checkpoints import safetensors_io as tensors_module
from pixtral.checkpoints.opening import build_empty
from pixtral.checkpoints.save import plan_shards, staging, total_bytes, write_index
from pixtral.configuration import GenerationConfig, LlavaConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hugging_face_and_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_llava(VARIANTS[name]).to(dtype)
    names = ("model.safetensors", "config.json", "generation_config.json")
    assert save_model(model, tmp_path) == tuple(tmp_path / name for name in names)
    again = load_model(LlavaForConditionalGeneration, tmp_path)
    assert_same(again.state_dict(), model.state_dict())
    expected, found = model.config.to_dict(), again.config.to_dict()
    for part in (expected, expected["text_config"], expected["vision_config"]):
        part["dtype"] = str(dtype).removeprefix("torch.")
    assert found == {**expected, "architectures": ["LlavaForConditionalGeneration"]}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mistral_and_back(bias: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    config = llava_dict(multimodal_projector_bias=bias, image_token_index=77)
    model = random_llava(config).to(dtype)
    written = save_model(model, tmp_path, layout="mistral")
    names = ("consolidated.safetensors", "params.json", "generation_config.json")
    assert written == tuple(tmp_path / name for name in names)
    again = load_model(LlavaForConditionalGeneration, tmp_path)
    assert_same(again.state_dict(), model.state_dict())
    assert again.loaded_from.layout == "mistral"  # type: ignore[union-attr]
    assert (again.config.image_token_index, again.config.multimodal_projector_bias) == (77, bias)
    assert_same(load_file(written[0]), native_state(model.state_dict(), config))
    params = json.loads((tmp_path / "params.json").read_text())
    assert params == params_json(config)


def test_names_on_disk_are_the_published_ones(tmp_path: Path) -> None:
    model = random_llava()
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert_same(stored, {prefixed(name, "classic"): value for name, value in model.state_dict().items()})


@pytest.mark.parametrize(("cls", "part"), [(PixtralVisionModel, "vision_config"), (MistralForCausalLM, "text_config")])
def test_the_parts_alone(cls: type[nn.Module], part: str, tmp_path: Path) -> None:
    save_model(random_llava(), tmp_path / "whole")
    model = load_model(cls, tmp_path / "whole")
    save_model(model, tmp_path / "part")
    again = load_model(cls, tmp_path / "part")
    assert_same(again.state_dict(), model.state_dict())
    values = json.loads((tmp_path / "part" / "config.json").read_text())
    assert values["architectures"] == [cls.__name__]
    with pytest.raises(ConfigError, match="Mistral's layout holds a whole Pixtral, not a"):
        save_model(model, tmp_path / "native", layout="mistral")


@pytest.mark.parametrize("layout", ["hf", "mistral"])
def test_shards(layout: str, tmp_path: Path) -> None:
    model = random_llava()
    written = save_model(model, tmp_path, layout=layout, max_shard_size="20KB")
    stem = {"hf": "model", "mistral": "consolidated"}[layout]
    shards = sorted(tmp_path.glob(f"{stem}-*.safetensors"))
    assert len(shards) > 5
    assert shards[0].name == f"{stem}-00001-of-{len(shards):05d}.safetensors"
    assert set(written) == set(tmp_path.iterdir())
    for shard in shards:
        tensors = load_file(shard)
        assert sum(value.nbytes for value in tensors.values()) <= 20_000 or len(tensors) == 1
    index = json.loads((tmp_path / f"{stem}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert_same(load_model(LlavaForConditionalGeneration, tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize(("first", "second"), [("20KB", "5GB"), ("5GB", "20KB"), ("20KB", "40KB")])
def test_an_earlier_save_is_replaced(layout: str, first: str, second: str, tmp_path: Path) -> None:
    """Neither a stale index nor stale shards may be read afterwards."""
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    save_model(random_llava(seed=1), tmp_path, layout=layout, max_shard_size=first)
    model = random_llava(seed=2)
    written = save_model(model, tmp_path, layout=layout, max_shard_size=second)
    assert set(tmp_path.iterdir()) == {*written, other}
    assert_same(load_model(LlavaForConditionalGeneration, tmp_path).state_dict(), model.state_dict())


def test_into_the_folder_it_came_from(tmp_path: Path) -> None:
    save_model(random_llava(), tmp_path)
    model = load_model(LlavaForConditionalGeneration, tmp_path)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    save_model(model, tmp_path)
    assert_same(load_model(LlavaForConditionalGeneration, tmp_path).state_dict(), model.state_dict())


def test_both_layouts_side_by_side(tmp_path: Path) -> None:
    model = random_llava()
    save_model(model, tmp_path, layout="mistral")
    save_model(model, tmp_path)
    for layout in ("hf", "mistral"):
        again = load_model(LlavaForConditionalGeneration, tmp_path, layout=layout)  # type: ignore[arg-type]
        assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("fail_at", [0, 2])
def test_a_failure_leaves_the_folder_as_it_was(fail_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(random_llava(seed=1), tmp_path, max_shard_size="20KB")
    before = listing(tmp_path)
    real, calls = tensors_module.write_file, []

    def write_file(file: Path, shapes: dict[str, object], tensors: Iterable[torch.Tensor]) -> None:
        calls.append(file)
        if len(calls) > fail_at:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(file, shapes, tensors)

    monkeypatch.setattr("pixtral.checkpoints.save.write_file", write_file)
    with pytest.raises(CheckpointError, match=r"cannot write to .*No space left on device"):
        save_model(random_llava(seed=2), tmp_path, max_shard_size="30KB")
    assert listing(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_interrupt_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_file(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pixtral.checkpoints.save.write_file", write_file)
    with pytest.raises(KeyboardInterrupt):
        save_model(random_llava(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("pixtral.checkpoints.save.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"has 0.0 MB free, the model takes 0.\d MB; make room"):
        save_model(random_llava(), tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        save_model(random_llava(), tmp_path / "out")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_stored_once(tied: bool, tmp_path: Path) -> None:
    model = random_llava(llava_dict(tie_word_embeddings=tied))
    for layout, name in [("hf", "language_model.lm_head.weight"), ("mistral", "output.weight")]:
        file = save_model(model, tmp_path / layout, layout=layout)[0]
        assert (name in load_file(file)) != tied
        again = load_model(LlavaForConditionalGeneration, tmp_path / layout)
        assert_same(again.state_dict(), model.state_dict())
        assert (again.lm_head.weight is again.model.language_model.embed_tokens.weight) == tied


def test_untied_weights_under_a_tied_configuration(tmp_path: Path) -> None:
    model = random_llava(llava_dict(tie_word_embeddings=True))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    save_model(model, tmp_path)  # still equal
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, but lm_head.weight differs"):
        save_model(model, tmp_path)


def test_one_tensor_for_both_under_an_untied_configuration(tmp_path: Path) -> None:
    model = random_llava()
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    save_model(model, tmp_path)
    again = load_model(LlavaForConditionalGeneration, tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_what_has_no_name_is_refused(tmp_path: Path) -> None:
    model = random_llava()
    model.model.adapter = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"parameter 'model.adapter.weight' has no name in the 'hf' layout"):
        save_model(model, tmp_path)
    empty = build_empty(LlavaForConditionalGeneration, LlavaConfig.from_dict(copy.deepcopy(llava_dict())))
    with pytest.raises(CheckpointError, match="on meta; it cannot be saved"):
        save_model(empty, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["multi_head", "inner_layer"])
def test_what_mistrals_layout_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save with layout='hf'"):
        save_model(random_llava(VARIANTS[name]), tmp_path / "out", layout="mistral")
    assert not (tmp_path / "out").exists()


def test_generation_defaults_are_written(tmp_path: Path) -> None:
    model = random_llava()
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], temperature=0.3)  # type: ignore[assignment]
    save_model(model, tmp_path)
    values = json.loads((tmp_path / "generation_config.json").read_text())
    assert values == {"eos_token_id": [2, 7], "temperature": 0.3}


@pytest.mark.parametrize("size", ["", "GB", "5 parsecs", "-5GB", 0, -1, "0MB"])
def test_sizes_that_are_none(size: int | str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_shard_size is .*expected a number of bytes, or for example '5GB'"):
        save_model(random_llava(), tmp_path, max_shard_size=size)


def test_unknown_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layout is 'gguf'; expected 'hf' or 'mistral'"):
        save_model(random_llava(), tmp_path, layout="gguf")


SHAPES = {
    "a": (torch.float32, (10,)),
    "b": (torch.uint8, (25,)),
    "c": (torch.bfloat16, (100,)),
    "d": (torch.int8, (0, 4)),
    "e": (torch.float32, ()),
}


@pytest.mark.parametrize(
    ("limit", "groups"),
    [
        (1000, ["abcde"]),
        (100, ["ab", "c", "de"]),
        (65, ["ab", "c", "de"]),
        (64, ["a", "b", "c", "de"]),
        (1, ["a", "b", "c", "d", "e"]),
    ],
)
def test_groups(limit: int, groups: list[str]) -> None:
    assert total_bytes(SHAPES) == 40 + 25 + 200 + 0 + 4
    found = plan_shards(SHAPES, "model", limit)
    assert ["".join(group) for group in found.values()] == groups
    names = list(found)
    assert names == (
        ["model.safetensors"]
        if len(groups) == 1
        else [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    )


def test_the_index(tmp_path: Path) -> None:
    assert write_index(tmp_path, "model", plan_shards(SHAPES, "model", 1000), SHAPES) == []
    assert list(tmp_path.iterdir()) == []
    shards = plan_shards(SHAPES, "model", 100)
    assert write_index(tmp_path, "model", shards, SHAPES) == ["model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 269}
    assert index["weight_map"] == {name: file for file, group in shards.items() for name in group}


def test_it_becomes_the_target_at_once(tmp_path: Path) -> None:
    with staging(tmp_path / ".making") as place:
        (place.folder / "a").write_text("1")
        (place.folder / "b").write_text("2")
        assert not (tmp_path / "out").exists()
        place.become(tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staging(tmp_path / ".making") as place:
        (place.folder / "a").write_text("1")
        place.become(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, None])
def test_otherwise_nothing_is_left(error: type[BaseException] | None, tmp_path: Path) -> None:
    def run() -> None:
        with staging(tmp_path / ".making") as place:
            (place.folder / "a").write_text("1")
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".making").mkdir()
    (tmp_path / ".making" / "half").write_text("x")
    (tmp_path / ".making" / ".lock").write_text("")
    with staging(tmp_path / ".making") as place:
        assert [path.name for path in place.folder.iterdir()] == [".lock"]


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with staging(tmp_path / ".making") as place:
        (place.folder / "a").write_text("1")
        with (
            pytest.raises(CheckpointError, match=r"another process is writing into .*\.making; wait for it"),
            staging(tmp_path / ".making"),
        ):
            pytest.fail("entered")
        assert (place.folder / "a").read_text() == "1"
