"""Training in several processes of one thread each, which see different pictures and share their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def place() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) when it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace every gradient by the mean of all processes'; a parameter without one counts as zero."""
    world = place()[1]
    if world == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    packed = torch.cat([gradient.flatten() for gradient in gradients]) / world
    dist.all_reduce(packed)
    for gradient, mean in zip(gradients, torch.split(packed, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def shared_clock(minutes: float) -> float:
    """The first process's minutes, so that all change stages and stop together."""
    if place()[1] == 1:
        return minutes
    shared = torch.tensor([minutes], dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)
