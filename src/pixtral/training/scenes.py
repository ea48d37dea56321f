"""Generated images: coloured shapes on plain, graded or noisy backgrounds, with their ground truth.

A `Scene` describes an image; `sample_scene` makes one at random and `draw` paints it. Everything random comes from the
`numpy` generator that the caller passes, so one seed gives one image, on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.uint8]
RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 32, 38),
    "green": (40, 160, 62),
    "blue": (38, 84, 214),
    "yellow": (246, 222, 40),
    "purple": (128, 46, 168),
    "orange": (246, 138, 26),
    "pink": (250, 152, 192),
    "brown": (118, 68, 34),
    "black": (18, 18, 18),
    "white": (246, 246, 246),
    "grey": (130, 130, 130),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""The nine cells of an image in reading order; cell `i` is in row ``i // 3`` and column ``i % 3``."""

SIDES = (88, 160)
"""Smallest and largest side of an image in pixels."""

_BACKGROUNDS: tuple[RGB, ...] = (
    (252, 250, 244),
    (230, 232, 236),
    (206, 196, 160),
    (190, 214, 242),
    (176, 214, 184),
    (240, 214, 206),
    (12, 14, 16),
    (28, 34, 66),
    (34, 58, 44),
    (66, 66, 74),
    (92, 118, 150),
    (160, 170, 178),
    (84, 44, 60),
)
_CONTRAST = 95.0
_JITTER = 14
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One shape of a scene: what it is, which cell it is in, and how it is drawn (pixels, radians)."""

    colour: str
    shape: str
    cell: int
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB


@dataclass(frozen=True)
class Scene:
    """What an image shows: `things` in reading order on a background graded from one colour to another."""

    width: int
    height: int
    things: tuple[Thing, ...]
    background: tuple[RGB, RGB]
    slope: float
    noise: float
    seed: int


def sample_size(rng: np.random.Generator, *, multiple: int = 1, sides: tuple[int, int] = SIDES) -> tuple[int, int]:
    """Width and height in pixels, each within `sides` and a multiple of `multiple`, at most 1 : 2 in proportion."""
    low, high = sides
    while True:
        width, height = (int(rng.integers(low, high + 1)) // multiple * multiple for _ in range(2))
        if max(width, height) <= 2 * min(width, height) and width * height <= 128 * 144:
            return width, height


def _kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` different (colour, shape) pairs; often several share the shape or the colour, so counting is needed."""
    colours, mode = list(COLOURS), rng.random()
    repeat = mode < 0.5 and count > 1
    shape_pool = [SHAPES[i] for i in rng.choice(len(SHAPES), 2, replace=False)] if repeat else list(SHAPES)
    colour_pool = [colours[i] for i in rng.choice(len(colours), 2, replace=False)] if 0.5 <= mode < 0.7 else colours
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = (colour_pool[rng.integers(len(colour_pool))], shape_pool[rng.integers(len(shape_pool))])
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _jittered(rgb: RGB, rng: np.random.Generator, amount: int = _JITTER) -> RGB:
    """`rgb` with every channel moved by up to `amount`."""
    moved = [int(min(255, max(0, c + rng.integers(-amount, amount + 1)))) for c in rgb]
    return moved[0], moved[1], moved[2]


def _background(rng: np.random.Generator, colours: list[RGB]) -> tuple[RGB, RGB]:
    """Two ends of a background that every colour of `colours` stands out from."""
    contrast = [min(math.dist(base, c) for c in colours) for base in _BACKGROUNDS]
    good = [i for i, value in enumerate(contrast) if value >= _CONTRAST] or [int(np.argmax(contrast))]
    first = _BACKGROUNDS[good[rng.integers(len(good))]]
    second = first
    if rng.random() < 0.4:
        second = _BACKGROUNDS[good[rng.integers(len(good))]]
        middle = [tuple((a * (4 - k) + b * k) / 4 for a, b in zip(first, second, strict=True)) for k in range(5)]
        if min(math.dist(m, c) for m in middle for c in colours) < _CONTRAST:
            second = first
    return _jittered(first, rng, 8), _jittered(second, rng, 8)


def sample_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    counts: tuple[int, ...] = (1, 2, 3, 4, 5),
    alone: tuple[float, float] = (0.14, 0.28),
) -> Scene:
    """A random scene of `width` x `height` pixels with one of `counts` things (all equally likely).

    `alone` bounds the radius of a thing that is the only one, as a share of the shorter side.
    """
    count = int(counts[rng.integers(len(counts))])
    pairs = _kinds(rng, count)
    cells = sorted(int(c) for c in rng.choice(9, count, replace=False))
    side = min(width, height)
    smallest, largest = alone if count == 1 else (0.14, 0.165)
    common = rng.uniform(smallest, largest)
    things = []
    for cell, (colour, shape) in zip(cells, pairs, strict=True):
        radius = max(12.0, side * float(np.clip(common * rng.uniform(0.88, 1.12), smallest, largest)))
        row, column = divmod(cell, 3)
        x, y = (
            float(np.clip((index + 0.5 + rng.uniform(-0.12, 0.12)) / 3 * length, radius + 1, length - radius - 1))
            for index, length in ((column, width), (row, height))
        )
        turn = math.pi if shape == "star" else math.radians(15)
        rgb = _jittered(COLOURS[colour], rng)
        things.append(Thing(colour, shape, cell, x, y, radius, float(rng.uniform(-turn, turn)), rgb))
    ends = _background(rng, [thing.rgb for thing in things])
    noise = float(rng.choice([0.0, 3.0, 9.0]))
    return Scene(
        width, height, tuple(things), ends, float(rng.uniform(0, 2 * math.pi)), noise, int(rng.integers(2**31))
    )


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape inside the unit circle (y grows downwards)."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0.0, -1.0), (0.92, 0.72), (-0.92, 0.72)]
    if shape == "cross":
        a, b = 0.32, 0.95
        quarter = [(a, -b), (a, -a), (b, -a)]
        turns = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
        return [(p * x + q * y, r * x + s * y) for p, q, r, s in turns for x, y in quarter]
    if shape == "star":
        spokes = [(math.pi * k / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
        return [(r * math.sin(t), -r * math.cos(t)) for t, r in spokes]
    if shape == "heart":
        ts = [2 * math.pi * k / 40 for k in range(40)]
        xs = [16 * math.sin(t) ** 3 / 17.5 for t in ts]
        ys = [(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17.5 for t in ts]
        return [(x, -y - 0.12) for x, y in zip(xs, ys, strict=True)]
    return [(math.cos(2 * math.pi * k / 48), math.sin(2 * math.pi * k / 48)) for k in range(48)]


def _coverage(thing: Thing, left: int, top: int, side: int) -> npt.NDArray[np.float32]:
    """How much of each pixel of the window at (`left`, `top`) the shape covers, in 0..1."""
    scale = _SUPERSAMPLING
    mask = Image.new("L", (side * scale, side * scale), 0)
    pen = ImageDraw.Draw(mask)
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)

    def corners(factor: float) -> list[tuple[float, float]]:
        r = thing.radius * factor
        return [
            ((thing.x - left + r * (x * cos - y * sin)) * scale, (thing.y - top + r * (x * sin + y * cos)) * scale)
            for x, y in _outline(thing.shape)
        ]

    pen.polygon(corners(1.0), fill=255)
    if thing.shape == "ring":
        pen.polygon(corners(0.55), fill=0)
    covered: npt.NDArray[np.float32] = np.asarray(mask.reduce(scale), dtype=np.float32) / np.float32(255)
    return covered


def draw(scene: Scene) -> Pixels:
    """Paint a scene: uint8 RGB of shape (height, width, 3)."""
    return draw_labelled(scene)[0]


def draw_labelled(scene: Scene) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Paint a scene; also the index of the thing of every pixel, (height, width), -1 for none."""
    width, height = scene.width, scene.height
    first, second = (np.array(end, dtype=np.float32) for end in scene.background)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(scene.slope)
    along = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(scene.slope)
    blend = np.clip((across + along) / 2.8 + 0.5, 0, 1)[:, :, None]
    canvas = first * (1 - blend) + second * blend
    owners = np.full((height, width), -1, dtype=np.int64)
    for index, thing in enumerate(scene.things):
        left, top = math.floor(thing.x - thing.radius) - 1, math.floor(thing.y - thing.radius) - 1
        side = math.ceil(2 * thing.radius) + 4
        cover = _coverage(thing, left, top, side)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
        cover = cover[y0 - top : y1 - top, x0 - left : x1 - left, None]
        part = canvas[y0:y1, x0:x1]
        canvas[y0:y1, x0:x1] = part * (1 - cover) + np.array(thing.rgb, dtype=np.float32) * cover
        owners[y0:y1, x0:x1][cover[:, :, 0] > 0.5] = index
    if scene.noise:
        grain = np.random.default_rng(scene.seed).standard_normal((height, width, 1), dtype=np.float32)
        canvas = canvas + scene.noise * grain
    pixels: Pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return pixels, owners
