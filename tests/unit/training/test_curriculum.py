"""The tower's first lessons: patch labels agree with the scene, and the probe learns them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pixtral.models.vision import PixtralVisionModel
from pixtral.training.batches import IGNORED, SIZES, patch_labels
from pixtral.training.curriculum import Probe, make_labelled, probe_loss
from pixtral.training.scenes import COLOURS, SHAPES, draw_labelled, sample_scene
from pixtral.training.tiny import tiny_config


@pytest.mark.parametrize("size", [(64, 96), (128, 112), (160, 80)])
def test_labels_follow_the_scene(size):
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = sample_scene(rng, *size)
        _, owners = draw_labelled(scene)
        labels = patch_labels(scene, owners)
        columns = size[0] // 16
        assert labels.shape == (columns * (size[1] // 16), 4)
        kinds = {(list(COLOURS)[c - 1], SHAPES[s - 1], p) for c, s, _, p in labels if c > 0}
        assert kinds == {(t.colour, t.shape, t.cell) for t in scene.things}
        for at in np.flatnonzero(labels[:, 2] == 1):
            inside = [t for t in scene.things if (int(t.y) // 16, int(t.x) // 16) == divmod(int(at), columns)]
            assert any(SHAPES[labels[at, 1] - 1] == t.shape for t in inside)


def test_patches_of_the_background_have_no_place():
    scene = sample_scene(np.random.default_rng(1), 128, 128, counts=(1,))
    pixels, owners = draw_labelled(scene)
    labels = patch_labels(scene, owners)
    empty = (owners.reshape(8, 16, 8, 16) == -1).all(axis=(1, 3)).reshape(-1)
    assert empty.any() and not empty.all()
    assert (labels[empty] == (0, 0, 0, IGNORED)).all()
    assert pixels.shape == (128, 128, 3) and set(np.unique(owners)) == {-1, 0}


def test_a_repeated_lesson_is_learnt():
    torch.manual_seed(0)
    config = tiny_config().vision_config
    config.num_hidden_layers = 1
    tower, probe = PixtralVisionModel(config), Probe(config.hidden_size)
    batch = make_labelled(np.random.default_rng(0), 2)
    optimizer = torch.optim.Adam([*tower.parameters(), *probe.parameters()], lr=3e-3)
    for _ in range(60):
        loss, right = probe_loss(tower.encode(list(batch.pixels)), probe, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert right["colour"] > 0.9 and right["place"] > 0.9
    assert probe.linear.out_features == sum(SIZES)
