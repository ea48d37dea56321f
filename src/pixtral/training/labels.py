"""What each patch of a generated picture shows: colour, shape, middle of a thing or not, and place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pixtral.training.pictures import COLOURS, PLACES, SHAPES, Scene

PATCH = 16
IGNORED = -100
FEWEST_PIXELS = 12
"""A patch belongs to a thing that covers at least this many of its 256 pixels."""

SIZES = (len(COLOURS) + 1, len(SHAPES) + 1, 2, len(PLACES))
"""Classes of the four labels; the first class of colour and shape is "none"."""


def patch_owners(owners: npt.NDArray[np.int64], things: int) -> npt.NDArray[np.int64]:
    """Which of `things` each patch belongs to, (rows * columns,): an index, or -1; `owners` says it of each pixel."""
    rows, columns = owners.shape[0] // PATCH, owners.shape[1] // PATCH
    patches = owners.reshape(rows, PATCH, columns, PATCH).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    covered = np.stack([(patches == index).sum(1) for index in range(things)], axis=1)
    return np.where(covered.max(1) >= FEWEST_PIXELS, covered.argmax(1), -1)


def patch_labels(scene: Scene, owners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Labels of every patch in row-major order, (rows * columns, 4); `owners` as `draw_labelled` returns it."""
    rows, columns = owners.shape[0] // PATCH, owners.shape[1] // PATCH
    patches = owners.reshape(rows, PATCH, columns, PATCH).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    covered = np.stack([(patches == index).sum(1) for index in range(len(scene.things))], axis=1)
    best, most = covered.argmax(1), covered.max(1)
    labels = np.full((rows * columns, 4), IGNORED, dtype=np.int64)
    labels[most == 0] = (0, 0, 0, IGNORED)
    names = list(COLOURS)
    for index, thing in enumerate(scene.things):
        mine = (best == index) & (most >= FEWEST_PIXELS)
        labels[mine] = (1 + names.index(thing.colour), 1 + SHAPES.index(thing.shape), 0, thing.cell)
        middle = int(thing.y) // PATCH * columns + int(thing.x) // PATCH
        if mine[middle]:
            labels[middle, 2] = 1
    return labels
