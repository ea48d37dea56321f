"""Training batches: the same ids and pixels that the processor makes, and reproducible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pixtral.images.geometry import expand, image_grid
from pixtral.processing import PixtralProcessor
from pixtral.training.batches import Encoder, Stage, make_batch, normalise, prefetch
from pixtral.training.questions import KINDS, conversation, vocabulary
from pixtral.training.scenes import draw, sample_scene, sample_size
from pixtral.training.tiny import VOCAB_SIZE
from pixtral.training.tiny_tokenizer import write_tokenizer

STAGE = Stage((1, 2, 3), dict.fromkeys(KINDS, 1.0), 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path, vocabulary(), VOCAB_SIZE)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder(folder)


def test_ids_and_pixels_equal_the_processors(folder, encoder):
    processor = PixtralProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    for _ in range(6):
        width, height = sample_size(rng)
        scene = sample_scene(rng, width, height)
        turns = conversation(scene, rng, STAGE.weights, 3)
        messages = []
        for number, turn in enumerate(turns):
            opened = [{"type": "image", "image": Image.fromarray(draw(scene))}] if number == 0 else []
            messages.append({"role": "user", "content": [*opened, {"type": "text", "text": turn.text}]})
            messages.append({"role": "assistant", "content": turn.answer})
        made = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        image = expand(image_grid(width, height), 10, 12, 13)
        assert made["input_ids"][0].tolist() == encoder.conversation(image, turns)[0]
        torch.testing.assert_close(made["pixel_values"], normalise([draw(scene)]), rtol=0, atol=1e-5)


def test_targets_are_the_answers_and_their_ends(encoder):
    batch = make_batch(encoder, STAGE, np.random.default_rng(2), 8)
    assert sum(batch.lengths) == len(batch.ids) == len(batch.positions)
    assert len(batch.lengths) == len(batch.pixels) == 8
    assert torch.equal(batch.targets, batch.ids[batch.asked + 1])
    for index, question in enumerate(batch.questions):
        mine = [i for i, row in enumerate(batch.rows) if row == index]
        assert batch.targets[mine].tolist() == [*encoder.text(question.answer), 2]
    starts = batch.positions == 0
    assert int(starts.sum()) == 8 and set(batch.ids[starts].tolist()) == {1}


def test_one_seed_gives_one_batch(encoder):
    one, same, other = (make_batch(encoder, STAGE, np.random.default_rng(s), 4) for s in (7, 7, 8))
    assert torch.equal(one.ids, same.ids) and torch.equal(one.pixels, same.pixels)
    assert one.questions == same.questions != other.questions


def test_prefetch_yields_in_order_and_passes_errors_on():
    def make(number: int):
        if number == 9:
            raise RuntimeError("broken image")
        return number

    batches = prefetch(make, 5)
    assert [next(batches) for _ in range(4)] == [5, 6, 7, 8]
    with pytest.raises(RuntimeError, match="broken image"):
        next(batches)
