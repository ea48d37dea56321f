"""First lessons for the vision tower alone: each patch learns to say what it shows.

A linear probe on the tower's features names, for every patch, the colour and the shape of the thing it belongs to,
whether it holds the middle of a thing, and in which of the nine parts of the picture that thing is. This gives many
labels per picture and costs no decoder; trained from answers alone, shapes stay at chance for tens of thousands of
pictures. The probe is not part of the exported model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from pixtral.training.batches import normalise
from pixtral.training.pictures import COLOURS, PLACES, SHAPES, Scene, draw_labelled, sample_scene, sample_size

PATCH = 16
IGNORED = -100
FEWEST_PIXELS = 12
"""A patch belongs to a thing that covers at least this many of its 256 pixels."""

SIZES = (len(COLOURS) + 1, len(SHAPES) + 1, 2, len(PLACES))
"""Classes of the four labels; the first class of colour and shape is "none"."""


@dataclass(frozen=True)
class LabelledPictures:
    """pixels (B, 3, H, W) float32; labels (B * patches, 4) int64: colour, shape, middle, place."""

    pixels: torch.Tensor
    labels: torch.Tensor


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


def make_labelled(rng: np.random.Generator, size: int, counts: tuple[int, ...] = (2, 3, 4, 5)) -> LabelledPictures:
    """`size` new pictures of one random size with the labels of their patches."""
    width, height = sample_size(rng, multiple=PATCH)
    scenes = [sample_scene(rng, width, height, counts) for _ in range(size)]
    drawn = [draw_labelled(scene) for scene in scenes]
    labels = np.concatenate([patch_labels(scene, owners) for scene, (_, owners) in zip(scenes, drawn, strict=True)])
    return LabelledPictures(normalise([pixels for pixels, _ in drawn]), torch.from_numpy(labels))


class Probe(nn.Module):
    """Linear classifiers of the four labels on a patch's features."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, sum(SIZES))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, C) -> four tensors of logits (N, classes)."""
        normed = F.rms_norm(features.float(), features.shape[-1:])
        return torch.split(self.linear(normed).float(), list(SIZES), dim=-1)


def probe_loss(tower: Any, probe: Probe, batch: LabelledPictures) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum of the four cross-entropies, and the share of right labels on the patches of things."""
    logits = probe(tower.encode(list(batch.pixels)))
    loss = torch.zeros(())
    for index, part in enumerate(logits):
        weight = torch.ones(SIZES[index])
        if index < 2:
            weight[0] = 0.1
        loss = loss + F.cross_entropy(part, batch.labels[:, index], weight=weight, ignore_index=IGNORED)
    seen = batch.labels[:, 0] > 0
    right = {
        name: (part[seen].argmax(-1) == batch.labels[seen, index]).float().mean().item()
        for index, (name, part) in enumerate(zip(("colour", "shape", "middle", "place"), logits, strict=True))
    }
    return loss, right
