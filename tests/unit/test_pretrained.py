"""The public models: classes, arguments of from_pretrained and save_pretrained, and what they set on the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, write_hf, write_mistral
from random_models import llava_dict

from pixtral.configuration import GenerationConfig, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import CheckpointError, ConfigError, UnknownArgument
from pixtral.models import LlavaForConditionalGeneration, MistralForCausalLM, PixtralVisionModel, llava, mistral, vision

CLASSES = [
    (LlavaForConditionalGeneration, llava.LlavaForConditionalGeneration, LlavaConfig),
    (MistralForCausalLM, mistral.MistralForCausalLM, MistralConfig),
    (PixtralVisionModel, vision.PixtralVisionModel, PixtralVisionConfig),
]


@pytest.mark.parametrize(("public", "network", "config"), CLASSES)
@pytest.mark.parametrize("layout", ["hf", "mistral"])
def test_a_public_model_is_its_network(public: Any, network: Any, config: Any, layout: str, tmp_path: Path) -> None:
    (write_hf if layout == "hf" else write_mistral)(tmp_path)
    model = public.from_pretrained(tmp_path)
    assert type(model) is public
    assert isinstance(model, network)
    assert isinstance(model.config, config) and public.config_class is config
    assert model.name_or_path == str(tmp_path)
    assert model.loaded_from.layout == layout
    assert not model.training
    model.save_pretrained(tmp_path / "again")
    again = public.from_pretrained(str(tmp_path / "again"))
    assert_same(again.state_dict(), model.state_dict())
    assert_same(network(model.config).state_dict() | model.state_dict(), model.state_dict())  # the same names


def test_arguments_of_transformers_programs(tmp_path: Path) -> None:
    write_hf(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(
        pretrained_model_name_or_path=tmp_path,
        torch_dtype=torch.bfloat16,
        device_map="cpu",
        low_cpu_mem_usage=True,
        attn_implementation="sdpa",
        trust_remote_code=True,
        use_safetensors=True,
        local_files_only=True,
        token=None,
    )
    assert model.dtype == torch.bfloat16
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").can_generate()
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype="float16").dtype == torch.float16
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype="auto").dtype == torch.float32


def test_the_parts_have_short_names_that_the_weights_do_not(tmp_path: Path) -> None:
    write_hf(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert model.vision_tower is model.model.vision_tower
    assert model.multi_modal_projector is model.model.multi_modal_projector
    assert model.language_model is model.model.language_model is model.get_decoder()
    assert {name.partition(".")[0] for name in model.state_dict()} == {"model", "lm_head"}
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert model.get_memory_footprint() == size


def test_the_layout_can_be_chosen(tmp_path: Path) -> None:
    write_hf(tmp_path)
    write_mistral(tmp_path)
    for layout in ("hf", "mistral"):
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path, layout=layout)  # type: ignore[arg-type]
        assert model.loaded_from is not None and model.loaded_from.layout == layout


def test_arguments_for_the_hub_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        "revision": "v1",
        "token": "secret",
        "cache_dir": tmp_path,
        "local_files_only": True,
        "force_download": True,
    }
    seen: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **arguments: Any) -> str:
        seen.append(arguments)
        return str(tmp_path / "repo")

    write_hf(tmp_path / "repo")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = LlavaForConditionalGeneration.from_pretrained("team/model", **given)
    assert model.name_or_path == "team/model"
    for arguments in seen:
        assert arguments.pop("allow_patterns")
        assert arguments == {**given, "cache_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            {"dtpye": "auto"},
            UnknownArgument,
            r"from_pretrained\(\) got an unknown argument 'dtpye'; did you mean 'dtype'",
        ),
        ({"tp_plan": {}}, UnknownArgument, "unknown argument 'tp_plan'; known: activations, attn_implementation, "),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, ConfigError, "give one of them"),
        ({"attn_implementation": "flash_attention_2"}, ConfigError, "attn_implementation is 'flash_attention_2'"),
        ({"quantization_config": 4}, ConfigError, "quantization_config is a int; expected a pixtral.QuantizationConf"),
        ({"quantization": "int3"}, ConfigError, "quantization is 'int3'; expected 'int4' or 'int8'"),
        ({"use_safetensors": False}, ConfigError, "use_safetensors=False asks for pickles"),
        ({"config": {"hidden_size": 3}}, ConfigError, "config is a dict; expected a LlavaConfig"),
        ({"device_map": "gpu"}, ConfigError, "device_map is 'gpu'"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
    ],
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    write_hf(tmp_path)
    with pytest.raises(error, match=says):
        LlavaForConditionalGeneration.from_pretrained(tmp_path, **arguments)


def test_saving_refuses_pickles_and_unknown_arguments(tmp_path: Path) -> None:
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(llava_dict()))
    with pytest.raises(ConfigError, match="only safetensors are written"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UnknownArgument, match="unknown argument 'push_to_hub'"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    write_hf(tmp_path)
    config = LlavaConfig.from_dict(llava_dict(projector_hidden_act="relu"))
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path, config=config).config.projector_hidden_act == "relu"
    tower = PixtralVisionModel.from_pretrained(tmp_path, config=config)
    assert tower.config.hidden_size == config.vision_config.hidden_size
    config = LlavaConfig.from_dict(llava_dict(text={"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match="9 unexpected names"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path, config=config)


def test_defaults_of_generation(tmp_path: Path) -> None:
    write_hf(tmp_path, config=llava_dict(text={"eos_token_id": [2, 5], "pad_token_id": 11}))
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    expected = GenerationConfig(bos_token_id=1, eos_token_id=[2, 5], pad_token_id=11)
    assert model.generation_config == expected  # from the configuration, as there is no file
    assert MistralForCausalLM.from_pretrained(tmp_path).generation_config == expected
    values = {"_from_model_config": True, "eos_token_id": 7, "temperature": 0.5, "transformers_version": "5.23.0"}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert model.generation_config == GenerationConfig(eos_token_id=7, temperature=0.5)
    assert not hasattr(PixtralVisionModel.from_pretrained(tmp_path), "generation_config")
    model.save_pretrained(tmp_path / "again", layout="mistral")
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "again").generation_config.eos_token_id == 7


@pytest.mark.parametrize("config", [llava_dict(), MistralConfig(), None])
def test_a_configuration_of_another_kind(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"got a .*, expected a pixtral.LlavaConfig; make one with"):
        LlavaForConditionalGeneration(config)


def test_a_model_that_was_built_knows_no_files() -> None:
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(llava_dict()))
    assert model.loaded_from is None
    assert model.name_or_path == ""
    assert model.training


def test_a_loaded_model_generates(tmp_path: Path) -> None:
    write_hf(tmp_path)
    prompt = torch.tensor([[1, 20, 21]])
    for cls in (LlavaForConditionalGeneration, MistralForCausalLM):
        model = cls.from_pretrained(tmp_path)
        ids = model.generate(input_ids=prompt, max_new_tokens=3, eos_token_id=[])
        assert isinstance(ids, torch.Tensor)
        assert ids.shape == (1, 6)
        assert int(ids[0, 3]) == int(model(input_ids=prompt).logits[0, -1].argmax())
    assert not hasattr(PixtralVisionModel.from_pretrained(tmp_path), "generate")
