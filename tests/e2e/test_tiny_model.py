"""The shipped model answers rightly about images it has never seen, in both layouts and through every door.

The full measurement is `benchmarks/tiny_accuracy.py`; here fewer images and bounds a little below the goals, so
that a broken tokenizer, image processor, network or weight file fails and chance does not.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pixtral
from pixtral.assets import demo_image_path, tiny_path
from pixtral.training.batches import Encoder
from pixtral.training.curriculum import STAGES
from pixtral.training.evaluate import accuracy
from pixtral.training.export import LARGEST_FOLDER, demo_scene
from pixtral.training.scenes import draw

GOALS = {"colour": 0.95, "shape": 0.90, "count": 0.80, "position": 0.80}
QUESTIONS = {
    "What colour is the star?": "The star is green.",
    "What color is the circle?": "The circle is red.",
    "What shape is the blue thing?": "It is a square.",
    "How many shapes are there?": "There are three shapes.",
    "Where is the red circle?": "It is at the top left.",
    "What is in the picture?": "A red circle, a blue square and a green star.",
}


@pytest.fixture(scope="module")
def model():
    return pixtral.LlavaForConditionalGeneration.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def processor():
    return pixtral.AutoProcessor.from_pretrained(tiny_path())


def answer(model, processor, question: str, image) -> str:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.dtype)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", GOALS)
def test_right_on_held_out_images(model, kind):
    """Every answer is compared whole; 120 images of one to five things, seeds that training never uses."""
    right = accuracy(model, Encoder(tiny_path()), STAGES[-1], (kind,), 120, seed=2)
    assert right[kind] >= GOALS[kind] - 0.05


def test_answers_need_the_image(model):
    """Without the right pixels the same questions stay near chance."""
    embed = model.model.vision_tower.patch_conv.weight
    kept = embed.detach().clone()
    try:
        with torch.no_grad():
            embed.zero_()
        assert accuracy(model, Encoder(tiny_path()), STAGES[-1], ("colour",), 48, seed=2)["colour"] < 0.3
    finally:
        with torch.no_grad():
            embed.copy_(kept)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_demonstration_is_answered_rightly(model, processor, question):
    assert answer(model, processor, question, demo_image_path()) == QUESTIONS[question]


def test_the_demonstrations_image_is_the_generators():
    assert np.array_equal(np.asarray(Image.open(demo_image_path())), draw(demo_scene()))


def test_mistrals_layout_gives_the_same_model_and_answers(model, tmp_path):
    for name in ("params.json", "consolidated.safetensors", "tekken.json"):
        shutil.copy(tiny_path() / name, tmp_path / name)
    native = pixtral.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(model.named_parameters(), native.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_folder_is_small_enough():
    assert sum(file.stat().st_size for file in tiny_path().iterdir()) <= LARGEST_FOLDER
    assert demo_image_path().stat().st_size < 50_000
