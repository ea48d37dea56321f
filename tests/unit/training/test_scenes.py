"""Generated images: one seed gives one image, and the image shows what its scene says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pixtral.training.scenes import COLOURS, PLACES, SHAPES, SIDES, draw, sample_scene, sample_size


def scenes(seed: int, number: int, **options):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, *sample_size(rng), **options) for _ in range(number)]


def test_one_seed_gives_one_image():
    first, again = scenes(5, 20), scenes(5, 20)
    assert first == again
    assert all(np.array_equal(draw(a), draw(b)) for a, b in zip(first, again, strict=True))
    assert first != scenes(6, 20)


def test_sizes_stay_within_bounds_and_keep_multiples():
    rng = np.random.default_rng(0)
    sizes = [sample_size(rng) for _ in range(300)]
    assert all(SIDES[0] <= side <= SIDES[1] for size in sizes for side in size)
    assert any(side % 16 for size in sizes for side in size)
    assert all(max(size) <= 2 * min(size) for size in sizes)
    assert all(side % 16 == 0 for _ in range(100) for side in sample_size(rng, multiple=16))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_things_are_different_inside_and_in_reading_order(count):
    for scene in scenes(count, 100, counts=(count,)):
        assert len({(t.colour, t.shape) for t in scene.things}) == len(scene.things) == count
        cells = [t.cell for t in scene.things]
        assert cells == sorted(set(cells)) and all(0 <= c < len(PLACES) for c in cells)
        for thing in scene.things:
            assert thing.radius <= thing.x <= scene.width - thing.radius
            assert thing.radius <= thing.y <= scene.height - thing.radius
            assert int(3 * thing.y / scene.height) * 3 + int(3 * thing.x / scene.width) == thing.cell
            assert math.dist(thing.rgb, COLOURS[thing.colour]) <= 14 * math.sqrt(3)


def test_things_hardly_overlap():
    for scene in scenes(9, 200, counts=(5,)):
        boxes = [(t.x, t.y, t.radius) for t in scene.things]
        for i, (x, y, r) in enumerate(boxes):
            assert all(max(abs(x - a), abs(y - b)) > 0.7 * (r + s) for a, b, s in boxes[:i])


def test_every_shape_paints_its_colour_where_it_is():
    seen = set()
    for scene in scenes(3, 300, counts=(1, 2)):
        pixels = draw(dataclasses.replace(scene, noise=0.0)).astype(int)
        assert pixels.shape == (scene.height, scene.width, 3)
        for thing in scene.things:
            # the middle of a ring is background; its band is the shape
            x = thing.x + (0.77 * thing.radius if thing.shape == "ring" else 0)
            painted = pixels[int(thing.y), int(x)]
            assert math.dist(painted, thing.rgb) < 4, (thing, painted)
            seen.add((thing.shape, thing.colour))
    assert {shape for shape, _ in seen} == set(SHAPES) and {colour for _, colour in seen} == set(COLOURS)


def test_shapes_stand_out_from_the_background():
    for scene in scenes(4, 200):
        for thing in scene.things:
            assert all(math.dist(thing.rgb, end) > 60 for end in scene.background)


def test_colours_are_further_apart_than_their_jitter():
    names = list(COLOURS)
    closest = min(math.dist(COLOURS[a], COLOURS[b]) for i, a in enumerate(names) for b in names[:i])
    assert closest > 2 * 14 * math.sqrt(3)
