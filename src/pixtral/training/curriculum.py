"""The curriculum of a training run: its plan and state, and its learning tasks in order.

The vision tower is first trained alone to classify patches (colour, shape, middle, place) with a linear probe; then the
whole model answers questions, in stages of growing difficulty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pixtral.training.batches import IGNORED, PATCH, SIZES, Stage, normalise, patch_labels
from pixtral.training.scenes import draw_labelled, sample_scene, sample_size

_NAMING = {"describe": 1.0, "colour": 1.0, "shape": 1.0}
_PLACING = {**_NAMING, "position": 1.0}
_COUNTING = {**_PLACING, "count": 1.0}
_EVERYTHING = {
    "describe": 0.6,
    "colour": 1.0,
    "shape": 1.0,
    "position": 1.2,
    "count": 4.0,
    "relation": 0.3,
    "exists": 0.9,
}

STAGES = (
    Stage((1,), _NAMING, 1, {"colour": 0.9, "shape": 0.6}, sides=(88, 128)),
    Stage((1, 2), _PLACING, 3, {"colour": 0.9, "shape": 0.7, "position": 0.75}),
    Stage((1, 2, 3), _COUNTING, 4, {"colour": 0.9, "shape": 0.75, "position": 0.8, "count": 0.7}),
    Stage((1, 2, 3, 4, 5), _EVERYTHING, 5),
)
"""The stages. A mixture of all tasks from the start stays at chance for a long time."""

LATEST = (0.25, 0.6, 0.7, 1.0)
"""Fraction of the time after which a stage ends even if its goal is not reached."""

LESSONS_GOAL = {"colour": 0.93, "shape": 0.7, "middle": 0.88, "place": 0.8}
"""Accuracy of the probe at which the first lessons, those of the tower alone, end."""

LESSONS_LATEST = 0.2
"""Fraction of the time after which the first lessons end in any case."""


@dataclass(frozen=True)
class Plan:
    """Hyperparameters of a run."""

    minutes: float = 90.0
    seed: int = 1
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_from: float = 0.5
    probe_weight: float = 0.5
    pointing_weight: float = 0.5
    report_minutes: float = 3.0
    bfloat16: bool = True


@dataclass
class State:
    """The progress of a run; `learning` is false until the tower's first lessons are over."""

    learning: bool = False
    lessons: int = 0
    step: int = 0
    stage: int = 0
    images: int = 0
    minutes: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def learning_rate(plan: Plan, step: int, progress: float) -> float:
    """Linear warm-up by steps, constant, then a cosine to 1 % over the last part of the time."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    late = max(0.0, (min(progress, 1.0) - plan.decay_from) / (1 - plan.decay_from))
    return plan.learning_rate * warm * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * late)))


@dataclass(frozen=True)
class LabelledImages:
    """pixels (B, 3, H, W) float32; labels (B * patches, 4) int64: colour, shape, middle, place."""

    pixels: torch.Tensor
    labels: torch.Tensor


def make_labelled(rng: np.random.Generator, size: int, counts: tuple[int, ...] = (2, 3, 4, 5)) -> LabelledImages:
    """`size` new images of one random size, with the labels of their patches."""
    width, height = sample_size(rng, multiple=PATCH)
    scenes = [sample_scene(rng, width, height, counts) for _ in range(size)]
    drawn = [draw_labelled(scene) for scene in scenes]
    labels = np.concatenate([patch_labels(scene, owners) for scene, (_, owners) in zip(scenes, drawn, strict=True)])
    return LabelledImages(normalise([pixels for pixels, _ in drawn]), torch.from_numpy(labels))


class Probe(nn.Module):
    """Linear probe: classifiers of the four labels on a patch's features."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, sum(SIZES))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, C) -> four tensors of logits (N, classes)."""
        normed = F.rms_norm(features.float(), features.shape[-1:])
        return torch.split(self.linear(normed).float(), list(SIZES), dim=-1)


def probe_loss(features: torch.Tensor, probe: Probe, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum of the four cross-entropies, and the accuracy of each label on the patches of things.

    Args:
        features: (N, C), the output of the tower.
        labels: (N, 4) int64.
    """
    logits = probe(features)
    loss = torch.zeros(())
    for index, part in enumerate(logits):
        weight = torch.ones(SIZES[index])
        if index < 2:
            weight[0] = 0.1
        loss = loss + F.cross_entropy(part, labels[:, index], weight=weight, ignore_index=IGNORED)
    seen = labels[:, 0] > 0
    right = {
        name: (part[seen].argmax(-1) == labels[seen, index]).float().mean().item()
        for index, (name, part) in enumerate(zip(("colour", "shape", "middle", "place"), logits, strict=True))
    }
    return loss, right
