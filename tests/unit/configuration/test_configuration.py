"""Configurations: every published spelling is read, nothing wrong gets through, and messages say what to do."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published_configs import CONFIG_12B, PARAMS_12B, PARAMS_LARGE

from pixtral.configuration import Config, GenerationConfig, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import CheckpointError, ConfigError


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the field at a dotted path set to a value."""
    values = copy.deepcopy(values)
    *parts, last = path.split(".")
    place = values
    for part in parts:
        place = place[part]
    place[last] = value
    return values


def write(folder: pathlib.Path, name: str, values: Any) -> pathlib.Path:
    (folder / name).write_text(json.dumps(values))
    return folder


# reading what is published


def assert_is_12b(config: LlavaConfig) -> None:
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (5120, 14336, 40)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 8, 128)
    assert (text.vocab_size, text.rms_norm_eps, text.rope_theta) == (131072, 1e-5, 1e9)
    assert (text.sliding_window, text.hidden_act, text.tie_word_embeddings) == (None, "silu", False)
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (1024, 4096, 24)
    assert (vision.num_attention_heads, vision.head_dim, vision.num_channels) == (16, 64, 3)
    assert (vision.image_size, vision.patch_size, vision.rope_theta, vision.hidden_act) == (1024, 16, 1e4, "silu")
    assert (config.image_token_index, config.image_token_id, config.image_seq_length) == (10, 10, 1)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    assert (config.projector_hidden_act, config.multimodal_projector_bias) == ("gelu", True)
    assert config.dtype == "bfloat16"


def test_config_json_of_12b(tmp_path: pathlib.Path) -> None:
    config = LlavaConfig.from_pretrained(write(tmp_path, "config.json", CONFIG_12B))
    assert_is_12b(config)
    assert config.text_config.max_position_embeddings == 1024000
    assert not config.text_config.head_dim_is_derived


def test_params_json_of_12b(tmp_path: pathlib.Path) -> None:
    config = LlavaConfig.from_pretrained(write(tmp_path, "params.json", PARAMS_12B))
    assert_is_12b(config)
    written = config.to_params()
    assert written.pop("max_position_embeddings") == 131072
    assert written == PARAMS_12B
    assert LlavaConfig.from_params(written) == config


def test_params_json_of_large() -> None:
    config = LlavaConfig.from_params(PARAMS_LARGE)
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (12288, 96, 8, 128)
    assert (text.num_hidden_layers, text.vocab_size, text.intermediate_size) == (88, 32768, 28672)
    assert (vision.hidden_size, vision.head_dim, vision.num_hidden_layers) == (1408, 88, 40)
    assert (config.image_token_index, config.image_break_token_id, config.image_end_token_id) == (10, 14, 15)
    assert config.multimodal_projector_bias is False
    written = config.to_params()
    assert written == {**PARAMS_LARGE, "max_position_embeddings": 131072}
    assert LlavaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_params_json_says_the_image_token() -> None:
    config = LlavaConfig.from_params(changed(PARAMS_12B, "vision_encoder.image_token_id", 99))
    assert config.image_token_index == 99 == config.to_params()["vision_encoder"]["image_token_id"]
    params = copy.deepcopy(PARAMS_12B)
    for field in ("image_token_id", "adapter_bias", "rope_theta"):
        del params["vision_encoder"][field]
    assert LlavaConfig.from_params(params) == LlavaConfig.from_params(PARAMS_12B)


def test_parts_are_read_from_the_whole(tmp_path: pathlib.Path) -> None:
    (tmp_path / "native").mkdir()
    for folder in (
        write(tmp_path, "config.json", CONFIG_12B),
        write(tmp_path / "native", "params.json", PARAMS_12B),
    ):
        whole = LlavaConfig.from_pretrained(folder)
        assert MistralConfig.from_pretrained(folder) == whole.text_config
        assert PixtralVisionConfig.from_pretrained(str(folder)) == whole.vision_config


def test_config_json_goes_before_params_json(tmp_path: pathlib.Path) -> None:
    write(tmp_path, "params.json", PARAMS_LARGE)
    assert_is_12b(LlavaConfig.from_pretrained(write(tmp_path, "config.json", CONFIG_12B)))


def test_what_tools_around_transformers_ask_of_a_configuration(tmp_path: pathlib.Path) -> None:
    config = LlavaConfig.from_params(PARAMS_12B)
    assert config.get_text_config() is config.text_config
    config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == config.to_json_string()
    assert LlavaConfig.from_dict(json.loads(config.to_json_string())) == config


def test_a_misspelt_field_of_params_is_named() -> None:
    for where, wrong, right in (("", "ropetheta", "rope_theta"), ("vision_encoder.", "patchsize", "patch_size")):
        with pytest.raises(ConfigError, match=f"has the field '{wrong}'.*did you mean '{right}'"):
            LlavaConfig.from_params(changed(PARAMS_12B, where + wrong, 1))


def test_newer_params_put_the_tower_deeper() -> None:
    params = copy.deepcopy(PARAMS_12B)
    params["multimodal"] = {"vision_encoder_args": params.pop("vision_encoder")}
    assert LlavaConfig.from_params(params) == LlavaConfig.from_params(PARAMS_12B)


def test_defaults_are_transformers() -> None:
    text, vision, whole = MistralConfig(), PixtralVisionConfig(), LlavaConfig()
    assert (text.hidden_size, text.head_dim, text.sliding_window, text.rope_theta) == (4096, 128, 4096, 10000.0)
    assert (vision.hidden_act, vision.rope_theta, vision.head_dim) == ("gelu", 10000.0, 64)
    assert (whole.image_token_index, whole.vision_feature_layer) == (32000, -2)
    assert whole.text_config == text and whole.vision_config == vision


# spellings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_theta": 500.0}, 500.0),
        ({"rope_theta": 1000000000}, 1e9),
        ({"rope_parameters": {"rope_theta": 500.0}}, 500.0),
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, 500.0),
        ({"rope_parameters": {"rope_theta": 500.0, "type": "default"}}, 500.0),
        ({"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0),
        ({"rope_theta": 500.0, "rope_parameters": None}, 500.0),
        ({"rope_theta": 500.0, "rope_parameters": {"factor": None}}, 500.0),
        ({}, 10000.0),
    ],
)
@pytest.mark.parametrize("kind", [MistralConfig, PixtralVisionConfig])
def test_spellings_of_the_rotary_base(kind: Any, given: dict[str, Any], expected: float) -> None:
    config = kind.from_dict(given)
    assert config.rope_theta == expected
    assert config.rope_parameters["rope_theta"] == expected


@given(
    st.sampled_from(["torch_dtype", "dtype"]),
    st.sampled_from(["image_token_index", "image_token_id"]),
    st.sampled_from(["flat", "nested", "both"]),
    st.sets(st.sampled_from(["transformers_version", "_name_or_path", "id2label", "is_composition", "use_cache"])),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_mixture_of_spellings(
    dtype: str, image_token: str, rope: str, generic: set[str], lists: bool, order: Any
) -> None:
    """All that old and new files differ in, in any combination and order, is one configuration."""
    values = copy.deepcopy(CONFIG_12B)
    values[dtype] = values.pop("torch_dtype")
    values[image_token] = values.pop("image_token_index")
    for part in (values["text_config"], values["vision_config"]):
        if rope != "flat":
            part["rope_parameters"] = {"rope_type": "default", "rope_theta": part["rope_theta"]}
        if rope == "nested":
            del part["rope_theta"]
    for key in generic:
        values[key] = values["text_config"][key] = True
    if lists:
        values["vision_config"] |= {"image_size": [1024, 1024], "patch_size": [16, 16]}
    shuffled = list(values.items())
    order.shuffle(shuffled)
    assert LlavaConfig.from_dict(dict(shuffled)) == LlavaConfig.from_dict(CONFIG_12B)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "torch.bfloat16"])
def test_dtype_becomes_a_name(dtype: Any, tmp_path: pathlib.Path) -> None:
    config = MistralConfig(dtype=dtype)
    config.save_pretrained(tmp_path)
    assert config.dtype == "bfloat16" == MistralConfig.from_pretrained(tmp_path).dtype


def test_null_activation_of_the_projector_means_gelu() -> None:
    assert LlavaConfig(projector_hidden_act=None).projector_hidden_act == "gelu"


def test_the_files_activation_is_honoured() -> None:
    for name in ("silu", "gelu"):
        assert (
            LlavaConfig.from_dict(changed(CONFIG_12B, "vision_config.hidden_act", name)).vision_config.hidden_act
            == name
        )


def test_ties_of_the_decoder_hold_for_the_whole() -> None:
    assert LlavaConfig.from_dict(changed(CONFIG_12B, "text_config.tie_word_embeddings", True)).tie_word_embeddings
    assert LlavaConfig.from_dict({**CONFIG_12B, "tie_word_embeddings": True}).text_config.tie_word_embeddings


# head_dim


def test_head_dim_is_never_lost(tmp_path: pathlib.Path) -> None:
    config = LlavaConfig.from_dict(CONFIG_12B)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["head_dim"] == 128
    assert LlavaConfig.from_pretrained(tmp_path).text_config.head_dim == 128


@pytest.mark.parametrize("missing", ["left out", None])
def test_a_missing_head_dim_is_marked_as_derived(missing: str | None) -> None:
    """So that whoever has the weights can correct 5120 / 32 = 160."""
    values = copy.deepcopy(CONFIG_12B["text_config"])
    values["head_dim"] = missing
    if missing:
        del values["head_dim"]
    config = MistralConfig.from_dict(values)
    assert config.head_dim_is_derived and config.head_dim == 160


def test_params_json_must_say_head_dim() -> None:
    params = {key: value for key, value in PARAMS_12B.items() if key != "head_dim"}
    with pytest.raises(ConfigError, match="no field 'head_dim'"):
        LlavaConfig.from_params(params)


def test_the_towers_head_dim_must_follow_from_its_width() -> None:
    with pytest.raises(ConfigError, match=r"head_dim is 88.*1024 channels / 16 heads = 64"):
        LlavaConfig.from_dict(changed(CONFIG_12B, "vision_config.head_dim", 88))
    assert PixtralVisionConfig.from_dict({"head_dim": None}).head_dim == 64


# there and back

SMALL_SIZES = st.integers(1, 12)


@st.composite
def llava_configs(draw: st.DrawFn) -> LlavaConfig:
    """Any valid configuration."""
    heads, kv_heads, depth = draw(SMALL_SIZES), draw(SMALL_SIZES), draw(SMALL_SIZES)
    activation = st.sampled_from(["silu", "gelu", "relu", "quick_gelu"])
    theta = st.floats(1.0, 1e10)
    layer = st.integers(-depth - 1, depth)
    token = st.none() | st.integers(0, 100)
    tied = draw(st.booleans())
    return LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=heads * 4 * draw(SMALL_SIZES),
            num_attention_heads=heads,
            num_hidden_layers=depth,
            hidden_act=draw(activation),
            rope_theta=draw(theta),
            patch_size=draw(SMALL_SIZES),
            attention_dropout=draw(st.floats(0, 0.9)),
        ),
        text_config=MistralConfig(
            hidden_size=draw(SMALL_SIZES) * kv_heads,
            num_attention_heads=kv_heads * draw(SMALL_SIZES),
            num_key_value_heads=kv_heads,
            head_dim=2 * draw(SMALL_SIZES),
            sliding_window=draw(st.none() | SMALL_SIZES),
            rope_theta=draw(theta),
            eos_token_id=draw(token | st.lists(st.integers(0, 9))),
            pad_token_id=draw(token),
            tie_word_embeddings=tied,
        ),
        vision_feature_layer=draw(layer | st.lists(layer, min_size=1)),
        image_token_index=draw(st.integers(0, 100)),
        image_break_token_id=draw(token),
        multimodal_projector_bias=draw(st.booleans()),
        tie_word_embeddings=tied,
        dtype=draw(st.none() | st.just("bfloat16")),
        quantization_config=draw(st.none() | st.just({"bits": 4})),
    )


@given(llava_configs())
def test_dictionary_and_back(config: LlavaConfig) -> None:
    before = copy.deepcopy(config)
    again = LlavaConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config == before
    assert type(again.text_config) is MistralConfig and type(again.vision_config) is PixtralVisionConfig


@given(llava_configs())
def test_params_and_back_or_refusal(config: LlavaConfig) -> None:
    try:
        params = config.to_params()
    except ConfigError as error:
        assert "layout" in str(error)
        return
    again = LlavaConfig.from_params(json.loads(json.dumps(params)))
    assert again.to_params() == params
    for ours, theirs in ((again.text_config, config.text_config), (again.vision_config, config.vision_config)):
        for field in dataclasses.fields(ours):
            if field.name not in ("dtype", "attention_dropout", "eos_token_id", "pad_token_id"):
                assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_files_and_back(tmp_path: pathlib.Path) -> None:
    for index, config in enumerate(
        [
            LlavaConfig.from_dict(CONFIG_12B),
            MistralConfig(),
            PixtralVisionConfig(),
            GenerationConfig(eos_token_id=[2, 3]),
        ]
    ):
        folder = tmp_path / "new" / str(index)
        config.save_pretrained(folder)
        assert type(config).from_pretrained(folder) == config
        assert [path.name for path in folder.iterdir()] == [config.file_name]


def test_to_dict_and_from_dict_share_nothing() -> None:
    values = copy.deepcopy(CONFIG_12B)
    config = LlavaConfig.from_dict(values)
    assert values == CONFIG_12B
    config.to_dict()["text_config"]["rope_parameters"]["rope_theta"] = 1.0
    config.architectures.append("other")
    assert config.text_config.rope_parameters["rope_theta"] == 1e9
    assert values == CONFIG_12B


def test_to_params_refuses_what_the_layout_cannot_say() -> None:
    config = LlavaConfig.from_params(PARAMS_12B)
    for name, value in [("vision_feature_layer", -2), ("projector_hidden_act", "relu")]:
        with pytest.raises(ConfigError, match=rf"{name} is .*layout='hf'"):
            dataclasses.replace(config, **{name: value}).to_params()
    config.text_config.sliding_window = 4096
    with pytest.raises(ConfigError, match="sliding_window is 4096"):
        config.to_params()


# mistakes

MISTAKES: list[tuple[str, Any, str]] = [
    ("text_config.hidden_size", "5120", r"MistralConfig.hidden_size is '5120', expected a positive integer"),
    ("text_config.hidden_size", 0, r"hidden_size is 0, expected a positive"),
    ("text_config.hidden_size", True, r"hidden_size is True, expected a positive"),
    ("text_config.vocab_size", -1, r"vocab_size is -1, expected a positive"),
    ("text_config.head_dim", 127, r"head_dim is 127.*even"),
    ("text_config.num_key_value_heads", 5, r"32 query heads.*5 key-value heads.*multiple"),
    ("text_config.hidden_act", "silly", r"MistralConfig.hidden_act is 'silly', expected one of silu"),
    ("text_config.rms_norm_eps", "1e-5", r"rms_norm_eps is '1e-5', expected a number"),
    ("text_config.rms_norm_eps", -1.0, r"rms_norm_eps is -1.0, expected a number from 0"),
    ("text_config.rope_theta", "1e9", r"rope_theta is '1e9', expected a positive number"),
    ("text_config.rope_theta", -1.0, r"rope_theta is -1.0, expected a positive number"),
    ("text_config.rope_parameters", {"rope_type": "yarn", "factor": 16}, r"rotary type 'yarn'.*unscaled"),
    ("text_config.rope_parameters", {"rope_theta": 5.0}, r"rope_theta 1000000000.0.*5.0; give one"),
    ("text_config.rope_parameters", [1], r"rope_parameters is \[1\], expected an object"),
    ("text_config.rope_scaling", {"factor": 2}, r"rope_scaling is .*null"),
    ("text_config.sliding_window", 0, r"sliding_window is 0, expected a positive"),
    ("text_config.sliding_window", "none", r"sliding_window is 'none', expected an integer or null"),
    ("text_config.use_cache", "yes", r"use_cache is 'yes', expected true or false"),
    ("text_config.eos_token_id", "</s>", r"eos_token_id is '</s>', expected an integer or a list of integers or null"),
    ("text_config.attention_dropout", 1.5, r"attention_dropout is 1.5, expected a number from 0 to below 1"),
    ("text_config.model_type", "llama", r"model_type 'llama', MistralConfig reads 'mistral'"),
    ("text_config.num_hiden_layers", 4, r"MistralConfig.*'num_hiden_layers'.*did you mean 'num_hidden_layers'"),
    ("text_config.dtype", "fp16", r"dtype is 'fp16', expected one of"),
    ("vision_config.hidden_size", 1000, r"1000 channels over 16 heads.*multiple of 4"),
    ("vision_config.num_attention_heads", 512, r"1024 channels over 512 heads"),
    ("vision_config.patch_size", [16, 14], r"patch_size is \[16, 14\].*one integer"),
    ("vision_config.patch_size", [], r"patch_size is \[\].*one integer"),
    ("vision_config.patch_size", [[16], [16]], r"patch_size is \[16\], expected a positive integer"),
    ("vision_config.image_size", "big", r"image_size is 'big', expected a positive"),
    ("vision_config.rope_parameters", {"rope_type": "llama3"}, r"rotary type 'llama3'"),
    ("vision_config.model_type", "clip_vision_model", r"'clip_vision_model', PixtralVisionConfig reads 'pixtral'"),
    ("vision_config.window", 4, r"PixtralVisionConfig does not know the field 'window'"),
    ("vision_config", [], r"vision_config is \[\], expected an object"),
    ("text_config", "mistral", r"text_config is 'mistral', expected an object"),
    ("vision_feature_select_strategy", "some", r"vision_feature_select_strategy is 'some', expected 'full'"),
    ("vision_feature_layer", 25, r"vision_feature_layer is 25, expected.*25 states, from -25 to 24"),
    ("vision_feature_layer", [-1, -26], r"vision_feature_layer is \[-1, -26\]"),
    ("vision_feature_layer", [], r"vision_feature_layer is \[\], expected"),
    ("image_token_index", -1, r"image_token_index is -1, expected a number from 0"),
    ("vision_feature_layer", "last", r"vision_feature_layer is 'last'"),
    ("multimodal_projector_bias", "false", r"multimodal_projector_bias is 'false', expected true or false"),
    ("image_token_index", None, r"image_token_index is None, expected an integer"),
    ("tie_word_embeddings", 1, r"tie_word_embeddings is 1, expected true or false"),
    ("quantization_config", "int4", r"quantization_config is 'int4', expected an object or null"),
    ("projector_hidden_act", 3, r"projector_hidden_act is 3, expected one of"),
    ("model_type", "mistral3", r"found model_type 'mistral3', LlavaConfig reads 'llava'"),
    ("spatial_merge_size", 2, r"LlavaConfig does not know the field 'spatial_merge_size'.*remove it"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_mistakes_in_config_json(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlavaConfig.from_dict(changed(CONFIG_12B, path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dim", "5120", r"hidden_size is '5120', expected a positive integer"),
        ("moe", {"num_experts": 8}, r"params.json.moe is .*only None"),
        ("quantization", {"qformat_weight": "fp8_e4m3"}, r"has the field 'quantization', which Pixtral does not have"),
        ("vision_encoder", None, r"no 'vision_encoder'; expected the file of a Pixtral model"),
        ("vision_encoder.spatial_merge_size", 2, r"spatial_merge_size is 2; only 1 is implemented"),
        ("vision_encoder.mm_projector_id", "patch_merge", r"mm_projector_id is 'patch_merge'"),
        ("vision_encoder.add_pre_mm_projector_layer_norm", True, r"add_pre_mm_projector_layer_norm is True"),
        ("vision_encoder.window", 3, r"vision_encoder has the field 'window'"),
        ("vision_encoder.adapter_bias", "no", r"multimodal_projector_bias is 'no', expected true or false"),
    ],
)
def test_mistakes_in_params_json(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlavaConfig.from_params(changed(PARAMS_12B, path, value))


@pytest.mark.parametrize("field", sorted(set(PARAMS_12B) - {"rope_theta", "norm_eps"}))
def test_fields_missing_from_params_json(field: str) -> None:
    params = {key: value for key, value in PARAMS_12B.items() if key != field}
    with pytest.raises(ConfigError, match=field):
        LlavaConfig.from_params(params)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config.json is not valid JSON.*again"),
        (b"\xff\xfe", r"not valid JSON"),
        (b"[1, 2]", r"holds a list, expected a JSON object"),
        (b"", r"not valid JSON"),
        (None, r"no config.json in .*found there: model.bin"),
    ],
)
@pytest.mark.parametrize("kind", [LlavaConfig, MistralConfig, PixtralVisionConfig])
def test_broken_files(kind: type[Config], content: bytes | None, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.bin").touch()
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        kind.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match="nowhere"):
        LlavaConfig.from_pretrained(tmp_path / "nowhere", local_files_only=True)


@pytest.mark.parametrize("value", [None, [], "x"])
def test_from_dict_needs_a_dictionary(value: Any) -> None:
    with pytest.raises(ConfigError, match="needs a JSON object"):
        LlavaConfig.from_dict(value)


def test_configurations_need_no_torch() -> None:
    code = (
        "import sys, pixtral.configuration as c; c.LlavaConfig(); "
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
