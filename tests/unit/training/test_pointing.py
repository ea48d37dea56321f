"""Pointers: a naming word means the patches of its thing, and attention learns to fall on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.training.batches import IMG, Encoder, Stage, make_batch, patch_owners
from pixtral.training.evaluate import forward
from pixtral.training.pointing import ANSWER, ROUTES, Pointer, attention_inputs, pointing_loss
from pixtral.training.questions import KINDS, vocabulary
from pixtral.training.scenes import COLOURS, SHAPES, draw_labelled, sample_scene
from pixtral.training.tiny import VOCAB_SIZE, tiny_config
from pixtral.training.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, vocabulary(), VOCAB_SIZE)
    return Encoder(folder)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(tiny_config())


def batch(encoder, *kinds: str, size: int = 3):
    stage = Stage((2, 3), dict.fromkeys(kinds or KINDS, 1.0), 3)
    made = (make_batch(encoder, stage, np.random.default_rng(seed), size) for seed in range(100))
    return next(b for b in made if b.labels is not None and b.pointers)


def test_patch_owners_follow_the_pixels():
    scene = sample_scene(np.random.default_rng(0), 128, 96, counts=(4,))
    _, owners = draw_labelled(scene)
    owned = patch_owners(owners, 4).reshape(6, 8)
    assert set(owned.ravel()) == {-1, 0, 1, 2, 3}
    for row, column in np.argwhere(owned >= 0):
        tile = owners[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
        assert (tile == owned[row, column]).sum() >= 12


@pytest.mark.parametrize("kind", ["colour", "shape", "position", "describe"])
def test_pointers_lead_from_naming_words_to_patches_of_that_thing(encoder, kind):
    made = batch(encoder, kind)
    names = [0, *COLOURS], [0, *SHAPES]
    for pointer in made.pointers:
        assert pointer.start <= min(pointer.rows) and max(pointer.rows) < pointer.row
        if pointer.route == ANSWER:
            assert all(int(made.ids[row]) in encoder.words for row in pointer.rows)
            said = int(made.targets[made.asked.tolist().index(pointer.row)])
            assert kind == "position" or said in encoder.words, "the token before the point of the answer looks back"
            continue
        token = int(made.ids[pointer.row])
        assert token in encoder.words | encoder.articles
        assert all(int(made.ids[row]) == IMG for row in pointer.rows)
        if token in encoder.words:
            image_rows = (made.ids == IMG).nonzero().flatten().tolist()
            shown = made.labels[[image_rows.index(row) for row in pointer.rows]]
            assert any(
                encoder.text(f" {names[0][c]}")[-1] == token or encoder.text(f" {names[1][s]}")[-1] == token
                for c, s, _, _ in shown.tolist()
                if c > 0
            )


def test_the_loss_is_the_attention_that_the_network_itself_computes(encoder, model):
    made = batch(encoder)
    with torch.no_grad(), attention_inputs(model) as seen:
        forward(model, made, bfloat16=False)
        loss = pointing_loss(model, seen, made.pointers)
    start = 0
    expected: list[list[torch.Tensor]] = [[] for _ in ROUTES]
    for number, length in enumerate(made.lengths):
        ids = made.ids[start : start + length]
        out = model(input_ids=ids[None], pixel_values=made.pixels[number : number + 1], output_attentions=True)
        for p in made.pointers:
            if p.start == start:
                layer, heads = ROUTES[p.route]
                weights = out.attentions[layer][0][list(heads), p.row - start]
                share = weights[:, [row - start for row in p.rows]].sum(-1)
                expected[p.route].append(-share.log())
        start += length
    means = [torch.stack(values)[:, head].mean() for values in expected if values for head in (0, 1)]
    torch.testing.assert_close(loss, torch.stack(means).mean(), rtol=1e-4, atol=1e-4)


def test_no_pointers_cost_nothing(encoder, model):
    assert pointing_loss(model, {}, ()).item() == 0.0


def test_attention_learns_to_point(encoder):
    torch.manual_seed(0)
    student = LlavaForConditionalGeneration(tiny_config())
    made = batch(encoder, "colour", "shape")
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        with attention_inputs(student) as seen:
            forward(student, made, bfloat16=False)
        loss = pointing_loss(student, seen, made.pointers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert isinstance(made.pointers[0], Pointer)
