"""First lessons for the vision tower alone: each patch learns to say what it shows.

A linear probe on the tower's features names, for every patch, the colour and the shape of the thing it belongs to,
whether it holds the middle of a thing, and in which of the nine parts of the picture that thing is. This gives many
labels per picture and costs no decoder; trained from answers alone, shapes stay at chance for tens of thousands of
pictures. The probe is not part of the exported model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pixtral.training.batches import normalise
from pixtral.training.labels import IGNORED, PATCH, SIZES, patch_labels
from pixtral.training.pictures import draw_labelled, sample_scene, sample_size


@dataclass(frozen=True)
class LabelledPictures:
    """pixels (B, 3, H, W) float32; labels (B * patches, 4) int64: colour, shape, middle, place."""

    pixels: torch.Tensor
    labels: torch.Tensor


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


def probe_loss(features: torch.Tensor, probe: Probe, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum of the four cross-entropies, and the share of right labels on the patches of things.

    features (N, C) as the tower gives them; labels (N, 4) int64.
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
