"""load(): folders, layouts, options, and what is missing."""

from __future__ import annotations

import shutil

import pytest
import torch

import pixtral
from pixtral.assets import demo_image_path, tiny_path
from pixtral.errors import CheckpointError, ConfigError, GenerationError

QUESTION = "What is in the picture?"


@pytest.fixture
def ask():
    return lambda assistant: assistant.chat(QUESTION, demo_image_path(), max_new_tokens=12)


def test_both_layouts_answer_alike(ask):
    answers = [ask(pixtral.load(tiny_path(), layout=layout, dtype=torch.float32)) for layout in ("hf", "mistral")]
    assert answers[0].text == answers[1].text
    assert answers[0].usage == answers[1].usage


def test_the_dtype_is_the_file_s_unless_said_otherwise(assistant):
    assert pixtral.load(device_map="cpu").model.dtype == torch.bfloat16
    assert assistant.model.dtype == torch.float32


def test_images_can_be_made_smaller(ask):
    answer = ask(pixtral.load(max_image_size=64, device_map="cpu"))
    (image,) = answer.images
    assert (image.width, image.height, image.resized_width, image.resized_height) == (144, 112, 64, 64)
    assert image.tokens == 4 * 5


def test_limits_hold_for_every_image():
    assistant = pixtral.load(limits=pixtral.ImageLimits(allow_files=False), device_map="cpu")
    with pytest.raises(pixtral.ImageError, match="allow_files"):
        assistant.chat(QUESTION, demo_image_path())


def test_how_answers_are_made_is_refused_before_anything_is_read(tmp_path):
    for wrong, words in (({"kv_cache": "int3"}, "kv_cache is 'int3'"), ({"prompt_lookup_num_tokens": 0}, "lookup")):
        with pytest.raises(GenerationError, match=words):
            pixtral.load(tmp_path / "nowhere", **wrong)
    assistant = pixtral.load(device_map="cpu", kv_cache="bf16", prompt_lookup_num_tokens=4)
    assert (assistant.kv_cache, assistant.prompt_lookup_num_tokens) == ("bf16", 4)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        pixtral.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        pixtral.load("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="dtype"):
        pixtral.load(dtype="float31")
    with pytest.raises(ConfigError, match="layout"):
        pixtral.load(layout="gguf")


def test_a_folder_without_a_tokenizer(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_path() / name, tmp_path)
    with pytest.raises(pixtral.PixtralError, match="no tokenizer"):
        pixtral.load(tmp_path)


def test_a_folder_without_weights(tmp_path):
    for file in tiny_path().iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        pixtral.load(tmp_path)
