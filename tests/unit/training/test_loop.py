"""The training loop: it learns, resumes where it stopped, follows its schedule, and averages gradients."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pixtral.configuration import LlavaConfig
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.training.batches import Encoder
from pixtral.training.curriculum import STAGES, Plan, learning_rate
from pixtral.training.evaluate import accuracy
from pixtral.training.loop import Trainer, average_gradients, rank_and_world, shared_clock
from pixtral.training.questions import vocabulary
from pixtral.training.tiny import VOCAB_SIZE, initialise, tiny_config
from pixtral.training.tiny_tokenizer import write_tokenizer

PLAN = Plan(minutes=1.0, batch_size=2, warmup_steps=2, bfloat16=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, vocabulary(), VOCAB_SIZE)
    return Encoder(folder)


def small_config() -> LlavaConfig:
    config = tiny_config()
    config.vision_config.num_hidden_layers = 1
    config.text_config.num_hidden_layers = 3
    return config


def trainer(encoder, folder) -> Trainer:
    model = LlavaForConditionalGeneration(small_config())
    initialise(model, 1)
    return Trainer(model, encoder, PLAN, folder)


def test_a_resumed_run_continues_as_if_it_had_not_stopped(encoder, tmp_path):
    straight = trainer(encoder, tmp_path / "a")
    for _ in range(4):
        straight.step(straight.make(straight.state.step))
    first = trainer(encoder, tmp_path / "b")
    assert not first.resume()
    for _ in range(2):
        first.step(first.make(first.state.step))
    first.save()
    second = trainer(encoder, tmp_path / "b")
    assert second.resume() and second.state.step == 2
    for _ in range(2):
        second.step(second.make(second.state.step))
    for (name, a), b in zip(straight.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(next(first.model.parameters()), next(second.model.parameters()))


def test_a_repeated_batch_is_learnt(encoder, tmp_path):
    learner = trainer(encoder, tmp_path)
    batch = learner.make(0)
    losses = [learner.step(batch) for _ in range(25)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_time_ends_the_run_and_the_state_is_kept(encoder, tmp_path):
    learner = trainer(encoder, tmp_path)
    learner.state.minutes, learner.state.learning = PLAN.minutes - 1e-6, True
    lines: list[str] = []
    learner.run(lines.append)
    assert learner.state.step == 1 and len(lines) == 1 and "colour=" in lines[0]
    assert trainer(encoder, tmp_path).resume()


def test_first_lessons_end_in_time_and_are_not_repeated(encoder, tmp_path):
    learner = trainer(encoder, tmp_path)
    learner.state.minutes = PLAN.minutes - 1e-6
    learner.run(lambda line: None)
    assert learner.state.lessons == 1 and learner.state.learning and learner.state.step == 0
    later = trainer(encoder, tmp_path)
    assert later.resume() and later.state.learning


def test_learning_rate_warms_up_holds_and_falls():
    plan = Plan(learning_rate=1.0, warmup_steps=10, decay_from=0.6)
    assert learning_rate(plan, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(plan, 100, 0.3) == learning_rate(plan, 100, 0.6) == pytest.approx(1.0)
    assert learning_rate(plan, 100, 1.0) == learning_rate(plan, 100, 1.2) == pytest.approx(0.01)
    assert 0.4 < learning_rate(plan, 100, 0.8) < 0.6


def test_accuracy_of_an_untrained_network_is_nothing(encoder):
    model = LlavaForConditionalGeneration(small_config())
    initialise(model, 1)
    right = accuracy(model, encoder, STAGES[-1], ("colour", "count"), 4, batch_size=4)
    assert right == {"colour": 0.0, "count": 0.0}


def work(rank: int, folder: str) -> None:
    """One of two processes; what it ends with goes to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    weight, other = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((2, 3), 1.0 + 2 * rank)
    if rank == 1:
        other.grad = torch.full((4,), 6.0)
    average_gradients([weight, other])
    torch.save((rank_and_world(), weight.grad, other.grad, shared_clock(10.0 + rank)), f"{folder}/{rank}.pt")
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
    assert rank_and_world() == (0, 1) and shared_clock(3.0) == 3.0 and torch.equal(weight.grad, torch.ones(2))
