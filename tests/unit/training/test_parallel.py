"""Several processes: each ends with the mean of all gradients and the first one's clock."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pixtral.training.loop import average_gradients, place, shared_clock


def work(rank: int, folder: str) -> None:
    """One of two processes; what it ends with goes to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    weight, other = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((2, 3), 1.0 + 2 * rank)
    if rank == 1:
        other.grad = torch.full((4,), 6.0)
    average_gradients([weight, other])
    torch.save((place(), weight.grad, other.grad, shared_clock(10.0 + rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_gradients_and_clock(tmp_path):
    spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        where, first, second, minutes = torch.load(tmp_path / f"{rank}.pt")
        assert where == (rank, 2) and minutes == 10.0
        assert torch.equal(first, torch.full((2, 3), 2.0))  # the mean of 1 and 3
        assert torch.equal(second, torch.full((4,), 3.0))  # the mean of nothing and 6


def test_a_process_alone_keeps_its_own():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    average_gradients([weight])
    assert place() == (0, 1) and shared_clock(3.0) == 3.0 and torch.equal(weight.grad, torch.ones(2))
