"""bitsandbytes beside Transformers 5.23 on the same library: the same layers, bytes, files, and greedy tokens.

The library computes the same on both sides from the same bytes. What goes in differs now and then in the last bit of
bfloat16, which quantization can make more of, so tokens of random networks, which are near ties, are compared where the
logits of the prompt are equal to the bit; those of the embedded model, which is trained, are compared always.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_same, native_state, params_json, write_weights
from isas import using_isa
from PIL import Image
from random_models import Batch, llava_dict, random_batch, randomize
from safetensors.torch import load_file
from torch import Tensor, nn

import pixtral
from pixtral import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration, MistralForCausalLM
from pixtral.assets import demo_image_path, tiny_path
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import ConfigError
from pixtral.models import PixtralVisionModel
from pixtral.quantization.bitsandbytes import BitsAndBytesQuantizer

pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
SCHEMES: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "fp4": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "double": {**NF4, "bnb_4bit_use_double_quant": True},
    "storage": {**NF4, "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
    "int8_skip": {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "model.vision_tower", "o_proj"]},
}
# Widths that the library can compute with on every CPU
VALUES = llava_dict(
    vision={"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2},
    text={
        "hidden_size": 128,
        "intermediate_size": 192,
        "head_dim": 32,
        "num_hidden_layers": 2,
        "eos_token_id": None,
        "pad_token_id": 0,
        "bos_token_id": 1,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network in bfloat16, written by Transformers."""
    place = tmp_path_factory.mktemp("full")
    model = transformers.LlavaForConditionalGeneration._from_config(transformers.LlavaConfig(**copy.deepcopy(VALUES)))
    randomize(model)
    model.to(torch.bfloat16).save_pretrained(place)
    return place


def theirs(folder: Path, scheme: dict[str, Any] | None = None, **arguments: Any) -> Any:
    if scheme is not None:
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(**scheme)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, device_map="auto", output_loading_info=True, **arguments
    )
    assert not any(info.values()), info
    return model


def ours(folder: Path, scheme: dict[str, Any] | None = None, **arguments: Any) -> LlavaForConditionalGeneration:
    if scheme is not None:
        arguments["quantization_config"] = BitsAndBytesConfig(**scheme)
    return LlavaForConditionalGeneration.from_pretrained(folder, device_map="auto", progress=False, **arguments)


def inputs(batch: Batch, model: Any) -> dict[str, Tensor]:
    found = batch.inputs()
    if "pixel_values" in found:
        found["pixel_values"] = found["pixel_values"].to(model.dtype)
    return found


def batches(model: LlavaForConditionalGeneration, seeds: int = 1) -> Iterator[Batch]:
    """Prompts for which both sides hand the library the same rows: not padded, and at most one image."""
    for seed in range(seeds):
        for grids in ((((3, 4),),), ((),)):
            yield random_batch(model.config, grids, seed=seed)


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs(batch, model)).logits
    return found


def greedy(model: Any, batch: Batch, **settings: Any) -> list[list[int]]:
    with warnings.catch_warnings():
        # Transformers names the classes of tensors that torch is about to rename
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="transformers")
        found: list[list[int]] = model.generate(**inputs(batch, model), max_new_tokens=8, **settings).tolist()
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    """Everything a model would save, as bytes: packed weights may pose as numbers of any kind."""
    return {name: value.reshape(-1).view(torch.uint8).clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dictionaries_and_json(scheme: str) -> None:
    values = SCHEMES[scheme] | {"llm_int8_threshold": 5.5}
    here, there = BitsAndBytesConfig(**values), transformers.BitsAndBytesConfig(**values)
    for one, other in ((here, there), (BitsAndBytesConfig(), transformers.BitsAndBytesConfig())):
        assert one.to_dict() == other.to_dict()
        assert one.to_diff_dict() == other.to_diff_dict()
        assert [one.to_json_string(use_diff) for use_diff in (True, False)] == [
            other.to_json_string(use_diff) for use_diff in (True, False)
        ]
        assert repr(one) == repr(other)
        assert one.quantization_method() == other.quantization_method()
        assert one.is_quantizable() == other.is_quantizable()
    assert BitsAndBytesConfig.from_dict(there.to_dict()) == here
    assert transformers.BitsAndBytesConfig.from_dict(here.to_dict()).to_dict() == here.to_dict()


WRONG: list[dict[str, Any]] = [
    {"load_in_4bit": True, "load_in_8bit": True},
    {"load_in_4bit": 1},
    {"load_in_8bit": "yes"},
    {"llm_int8_threshold": 6},
    {"llm_int8_skip_modules": "lm_head"},
    {"llm_int8_enable_fp32_cpu_offload": 0},
    {"llm_int8_has_fp16_weight": None},
    {"bnb_4bit_compute_dtype": 16},
    {"bnb_4bit_quant_type": 4},
    {"bnb_4bit_use_double_quant": "no"},
    {"bnb_4bit_quant_storage": "int4"},
    {"bnb_4bit_quant_storage": 8},
]


@pytest.mark.parametrize("values", WRONG, ids=str)
def test_what_transformers_refuses_is_refused_with_the_same_kind_of_error(values: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        transformers.BitsAndBytesConfig(**values)
    with pytest.raises(error.type):
        BitsAndBytesConfig(**values)


SKIPS: list[list[str] | None] = [
    None,
    ["lm_head"],
    ["model.vision_tower", "multi_modal_projector"],
    ["o_proj", "model.layers.1", "model.language_model.layers.1"],
    ["model.*down_proj", "transformer.layers.0"],
    ["q_pro"],
]
NETWORKS: dict[str, tuple[Any, Any, Any, str | None]] = {
    "LlavaForConditionalGeneration": (LlavaForConditionalGeneration, LlavaConfig, "LlavaConfig", None),
    "MistralForCausalLM": (MistralForCausalLM, MistralConfig, "MistralConfig", "text_config"),
    "PixtralVisionModel": (PixtralVisionModel, PixtralVisionConfig, "PixtralVisionConfig", "vision_config"),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_layers_are_converted(network: str, tied: bool) -> None:
    cls, config, other, part = NETWORKS[network]
    values = llava_dict(tie_word_embeddings=tied, text={"tie_word_embeddings": tied})
    values = copy.deepcopy(values[part] if part else values)
    for skip in SKIPS:
        if tied and skip is not None:
            continue  # an output layer that is tied and quantized: nobody can save that
        for bits in ({"load_in_4bit": True}, {"load_in_8bit": True})[: 2 if skip is None else 1]:
            chosen = {**bits, "llm_int8_skip_modules": skip}
            with torch.device("meta"):
                reference = getattr(transformers, network)(getattr(transformers, other)(**copy.deepcopy(values)))
            quantizer = transformers.quantizers.AutoHfQuantizer.from_config(
                transformers.BitsAndBytesConfig(**chosen), pre_quantized=False
            )
            quantizer.preprocess_model(model=reference, device_map=None, dtype=torch.bfloat16)
            model = build_empty(cls, config.from_dict(copy.deepcopy(values)))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="llm_int8_skip_modules")
                BitsAndBytesQuantizer(BitsAndBytesConfig(**chosen)).swap(model, torch.bfloat16)
            assert kinds(model) == kinds(reference), (network, skip)
            assert trained(model) == trained(reference)


def kinds(model: nn.Module) -> dict[str, str]:
    """Linear layers by name."""
    return {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("dtype", ["auto", torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_dtypes_logits_and_tokens(scheme: str, dtype: Any, folder: Path) -> None:
    reference, model = theirs(folder, SCHEMES[scheme], dtype=dtype), ours(folder, SCHEMES[scheme], dtype=dtype)
    assert_same(state(model), state(reference))
    assert model.dtype == reference.dtype
    assert {name: p.dtype for name, p in model.named_parameters()} == {
        name: p.dtype for name, p in reference.named_parameters()
    }
    assert model.num_parameters() == reference.num_parameters()
    buffers = sum(buffer.nbytes for buffer in reference.buffers())  # their rotary tables
    assert model.get_memory_footprint() == reference.get_memory_footprint() - buffers
    for batch in batches(model, 2 if dtype == "auto" else 1):
        found, expected = logits(model, batch), logits(reference, batch)
        assert (found - expected).abs().max() <= 0.05 * expected.abs().max()
        if torch.equal(found, expected):
            assert greedy(model, batch) == greedy(reference, batch)
    if model.dtype != torch.bfloat16:
        return
    same = 0
    with using_isa(
        "portable"
    ):  # PyTorch does the other layers, as it does in Transformers: then all bits can be the same
        for batch in batches(model, 2):
            if torch.equal(logits(model, batch), logits(reference, batch)):
                same += 1
                assert greedy(model, batch) == greedy(reference, batch)
    assert same >= 2


@pytest.mark.parametrize("devices", [{"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}, "auto", None], ids=str)
def test_modules_that_a_device_map_leaves_on_the_cpu(devices: Any, folder: Path) -> None:
    for offload in (False, True):
        scheme = {**NF4, "llm_int8_enable_fp32_cpu_offload": offload}
        reference = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, device_map=devices, quantization_config=transformers.BitsAndBytesConfig(**scheme)
        )
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, device_map=devices, quantization_config=BitsAndBytesConfig(**scheme)
        )
        assert kinds(model) == kinds(reference)
        assert_same(state(model), state(reference))


def test_attributes_that_programs_ask_for(folder: Path) -> None:
    for scheme in ("nf4", "int8"):
        reference, model = theirs(folder, SCHEMES[scheme]), ours(folder, SCHEMES[scheme])
        for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method"):
            assert getattr(model, name) == getattr(reference, name, False), name
        for name in ("is_trainable", "is_qat_trainable", "is_compileable"):
            assert getattr(model.hf_quantizer, name) == getattr(reference.hf_quantizer, name), name
        assert model.hf_quantizer is not None
        assert model.hf_quantizer.is_serializable() == reference.hf_quantizer.is_serializable()
        assert model.hf_quantizer.quantization_config.to_dict() == reference.hf_quantizer.quantization_config.to_dict()
        for cast in (
            lambda m: m.to(torch.float16),
            lambda m: m.to("cpu", torch.float16),
            lambda m: m.half(),
            lambda m: m.float(),
            lambda m: m.to(dtype=torch.bfloat16),
        ):
            for one in (reference, model):
                with pytest.raises(ValueError):
                    cast(one)
        assert model.to("cpu") is model
    plain = ours(folder)
    assert not (plain.is_quantized or plain.is_loaded_in_4bit or plain.is_loaded_in_8bit)
    assert plain.quantization_method is None and plain.hf_quantizer is None
    assert plain.to(torch.float16).half().float().dtype == torch.float32


@pytest.mark.parametrize("scheme", SCHEMES)
def test_checkpoints_both_ways(scheme: str, folder: Path, tmp_path: Path) -> None:
    reference, model = theirs(folder, SCHEMES[scheme]), ours(folder, SCHEMES[scheme])
    reference.save_pretrained(tmp_path / "theirs")
    expected = {
        load: [logits(one, batch) for batch in batches(model)] for load, one in ((ours, model), (theirs, reference))
    }
    model.save_pretrained(tmp_path / "ours", max_shard_size="200KB")  # after it has run
    files = {side: read(tmp_path / side) for side in ("ours", "theirs")}
    assert_same(files["ours"], files["theirs"])
    configs = {side: json.loads((tmp_path / side / "config.json").read_text()) for side in files}
    assert configs["ours"]["quantization_config"] == configs["theirs"]["quantization_config"]
    assert configs["ours"]["dtype"] == configs["theirs"]["dtype"] == "bfloat16"
    for side in files:
        for load in (ours, theirs):
            again = load(tmp_path / side)
            assert_same(state(again), state(model))
            assert all(map(torch.equal, [logits(again, batch) for batch in batches(model)], expected[load])), side
        assert model.config.quantization_config == ours(tmp_path / side).config.quantization_config


def read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return {name: value.reshape(-1).view(torch.uint8) for name, value in found.items()}


def test_a_decoder_and_a_tower_out_of_a_quantized_whole(folder: Path, tmp_path: Path) -> None:
    whole = theirs(folder, SCHEMES["nf4"])
    whole.save_pretrained(tmp_path)
    text = MistralForCausalLM.from_pretrained(tmp_path)
    found = {name.replace("model.", "model.language_model."): value for name, value in state(text).items()}
    expected = {n: v for n, v in state(whole).items() if n.startswith(("model.language_model.", "lm_head."))}
    assert_same(found, expected)
    tower = PixtralVisionModel.from_pretrained(tmp_path)
    assert tower.is_loaded_in_4bit
    assert_same(state(tower), state(whole.model.vision_tower))


def test_names_and_skips_of_former_transformers(folder: Path, tmp_path: Path) -> None:
    """Until 4.51 modules had other names, and an entry of llm_int8_skip_modules was looked for anywhere in them.

    Transformers 5 makes a model of such a file that cannot run; here the files say which layers are quantized. What is
    saved then is right for Transformers too.
    """
    skip = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    model = ours(folder, {**NF4, "llm_int8_skip_modules": skip})
    model.save_pretrained(tmp_path / "1")
    values = json.loads((tmp_path / "1" / "config.json").read_text())
    values["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "vision_tower", "multi_modal_projector"]
    (tmp_path / "1" / "config.json").write_text(json.dumps(values))
    old = ours(tmp_path / "1")
    assert kinds(old) == kinds(model)
    old.save_pretrained(tmp_path / "2")
    again = theirs(tmp_path / "2")
    assert kinds(again) == kinds(model)
    assert_same(state(again), state(model))


def test_another_configuration_than_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    ours(folder, NF4).save_pretrained(tmp_path)
    for load, scheme in ((theirs, SCHEMES["int8"]), (ours, SCHEMES["int8"])):
        with pytest.warns(UserWarning, match="quantization_config"):
            assert load(tmp_path, scheme).is_loaded_in_4bit
    ours(tmp_path, NF4)  # the same one: nothing to say
    with pytest.raises(ConfigError, match="says bitsandbytes, and quantization='int4' another way"):
        ours(tmp_path, quantization="int4")
    with pytest.raises(ConfigError, match="quantization_config says bitsandbytes, and quantization='int4' another"):
        ours(folder, NF4, quantization="int4")
    with pytest.raises(ConfigError, match="another way"):
        ours(tmp_path, quantization_config={"bits": 8})


def test_neither_four_nor_eight_bits(folder: Path) -> None:
    """Transformers takes 4 bits; what it saves then it cannot load, so the configuration says it here."""
    reference = theirs(folder, {})
    with pytest.warns(UserWarning, match="neither load_in_4bit nor load_in_8bit"):
        model = ours(folder, {})
    assert_same(state(model), state(reference))
    assert model.config.quantization_config["load_in_4bit"] is True


def test_the_native_layout_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    plain = ours(folder)
    native = {name: value.contiguous() for name, value in native_state(plain.state_dict(), VALUES).items()}
    write_weights(tmp_path, native, "consolidated")
    (tmp_path / "params.json").write_text(json.dumps(params_json(VALUES)))
    for scheme in (SCHEMES["double"], SCHEMES["int8_skip"]):
        model = ours(tmp_path, scheme)
        assert model.loaded_from is not None and model.loaded_from.layout == "mistral"
        assert_same(state(model), state(ours(folder, scheme)))


# What the library cannot compute on a CPU with AVX-512 and bfloat16: 288 columns are no multiple of its blocks
TINY_SKIP = ["lm_head", "model.vision_tower.*feed_forward.down_proj"]
TINY = {name: {**scheme, "llm_int8_skip_modules": TINY_SKIP} for name, scheme in SCHEMES.items() if name != "storage"}
QUESTIONS = ("How many shapes are there?", "Which shape is red?", "Describe the picture.", "Where is the circle?")


def questions(processor: Any, image_counts: tuple[int, ...]) -> dict[str, Tensor]:
    """Padded prompts about so many images each: the packaged one, and others made of it."""
    image = Image.open(demo_image_path()).convert("RGB")
    others = [image, image.rotate(90, expand=True), image.resize((96, 160))]
    chats = []
    for question, count in zip(QUESTIONS, image_counts, strict=True):
        images = [{"type": "image", "image": one} for one in others[:count]]
        chats.append([{"role": "user", "content": [*images, {"type": "text", "text": question}]}])
    found = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    return dict(found)


@pytest.mark.parametrize("scheme", TINY)
def test_answers_of_the_embedded_model(scheme: str) -> None:
    """A trained network, whose tokens are no near ties: one and several images, four questions at a time."""
    processor = AutoProcessor.from_pretrained(tiny_path())
    processor.tokenizer.padding_side = "left"
    reference, model = theirs(tiny_path(), TINY[scheme]), ours(tiny_path(), TINY[scheme])
    assert_same(state(model), state(reference))
    given = questions(processor, (3, 1, 2, 1))
    given["pixel_values"] = given["pixel_values"].to(model.dtype)
    with torch.no_grad():
        found = model.generate(**given, max_new_tokens=16, do_sample=False)
        expected = reference.generate(**given, max_new_tokens=16, do_sample=False)
    assert found.tolist() == expected.tolist()
    assert len(set(map(tuple, found[:, given["input_ids"].shape[1] :].tolist()))) == len(QUESTIONS)  # each its own


def test_both_kinds_of_padding_and_chat() -> None:
    model = ours(tiny_path(), NF4)
    processor = AutoProcessor.from_pretrained(tiny_path())
    rows = {}
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        given = questions(processor, (1, 1, 1, 1))
        given["pixel_values"] = given["pixel_values"].to(model.dtype)
        rows[side] = model.generate(**given, max_new_tokens=16)[:, given["input_ids"].shape[1] :].tolist()
    assert rows["left"] == rows["right"]
    assistant = pixtral.load(quantization_config=BitsAndBytesConfig(**NF4))
    for question, row in zip(QUESTIONS, rows["left"], strict=True):
        answer = assistant.chat(question, images=demo_image_path(), max_new_tokens=16)
        assert answer.text.strip() == processor.decode(row, skip_special_tokens=True).strip()
