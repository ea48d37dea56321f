"""The training loop of the embedded model, in one process or several that average their gradients.

Progress is measured in minutes of training, not in steps, so the learning rate schedule is complete on any
machine. The state (weights, optimiser, stage, step, minutes used) is written atomically; starting again continues.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.training.batches import Batch, Encoder, make_batch, prefetch
from pixtral.training.curriculum import (
    LATEST,
    LESSONS_GOAL,
    LESSONS_LATEST,
    STAGES,
    LabelledImages,
    Plan,
    Probe,
    State,
    learning_rate,
    make_labelled,
    probe_loss,
)
from pixtral.training.evaluate import accuracy, forward, training_precision
from pixtral.training.pointing import attention_inputs, pointing_loss


class Trainer:
    """A training run: model, optimiser, state, and the folder of its checkpoint."""

    def __init__(
        self, model: LlavaForConditionalGeneration, encoder: Encoder, plan: Plan, folder: pathlib.Path
    ) -> None:
        self.model, self.encoder, self.plan, self.folder = model, encoder, plan, folder
        self.probe = Probe(model.config.vision_config.hidden_size)
        parameters = [*model.parameters(), *self.probe.parameters()]
        matrices = [p for p in parameters if p.dim() > 1]
        vectors = [p for p in parameters if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95))
        self.state = State()
        self.pointed = 0.0  # moving average of the pointing loss
        self.rank, self.world = rank_and_world()

    @property
    def checkpoint(self) -> pathlib.Path:
        """The file of the run's checkpoint."""
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write the run's state; a crash while writing leaves the previous one."""
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "model": self.model.state_dict(),
                "probe": self.probe.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "state": vars(self.state),
            },
            draft,
        )
        os.replace(draft, self.checkpoint)

    def resume(self) -> bool:
        """Continue from the checkpoint; False when there is none."""
        if not self.checkpoint.exists():
            return False
        saved = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.probe.load_state_dict(saved["probe"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = State(**saved["state"])
        return True

    def make(self, number: int) -> Batch:
        """Batch `number` of the current stage."""
        stage = self.state.stage
        rng = np.random.default_rng([self.plan.seed, stage, number * self.world + self.rank])
        return make_batch(self.encoder, STAGES[stage], rng, self.plan.batch_size)

    def lesson(self, number: int) -> LabelledImages:
        """Batch `number` of the tower's first lessons."""
        rng = np.random.default_rng([self.plan.seed, 2**20, number * self.world + self.rank])
        return make_labelled(rng, self.plan.batch_size)

    def study(self, batch: LabelledImages) -> dict[str, float]:
        """One update of the tower from patch labels; its loss and the accuracies."""
        with training_precision(self.plan.bfloat16):
            seen = self.model.model.vision_tower.encode(list(batch.pixels))
            loss, right = probe_loss(seen, self.probe, batch.labels)
        self._update(loss, self.state.lessons)
        self.state.lessons += 1
        return {**right, "loss": loss.item()}

    def step(self, batch: Batch) -> float:
        """One update of the weights from answers, patch labels and pointers; the loss of the answers."""
        with attention_inputs(self.model) as given:
            logits, seen = forward(self.model, batch, self.plan.bfloat16)
        loss = nn.functional.cross_entropy(logits, batch.targets)
        extra = torch.zeros(())
        if batch.labels is not None:
            with training_precision(self.plan.bfloat16):
                extra = self.plan.probe_weight * probe_loss(seen, self.probe, batch.labels)[0]
                pointed = pointing_loss(self.model, given, batch.pointers)
            extra = extra + self.plan.pointing_weight * pointed
            self.pointed = 0.95 * self.pointed + 0.05 * pointed.item()
        self._update(loss + extra, self.state.step)
        self.state.step += 1
        self.state.images += len(batch.lengths) * self.world
        return loss.item()

    def _update(self, loss: torch.Tensor, step: int) -> None:
        rate = learning_rate(self.plan, step, self.state.minutes / self.plan.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients([*self.model.parameters(), *self.probe.parameters()])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def report(self, loss: float, log: Callable[[str], None], size: int = 96) -> dict[str, float]:
        """Evaluate on held-out images of the current stage, log a line, and save the run."""
        stage = STAGES[self.state.stage]
        right = accuracy(self.model, self.encoder, stage, tuple(stage.weights), size, bfloat16=self.plan.bfloat16)
        line = {
            "minutes": round(self.state.minutes, 1),
            "stage": self.state.stage,
            "step": self.state.step,
            "loss": loss,
        }
        self.state.history.append({**line, "right": right})
        scores = " ".join(f"{kind}={value:.3f}" for kind, value in right.items())
        log(
            f"{line['minutes']:6.1f} min stage {self.state.stage} step {self.state.step} "
            f"images {self.state.images} loss {loss:.4f} pointing {self.pointed:.3f} {scores}"
        )
        self.save()
        return right

    def run(self, log: Callable[[str], None] = print) -> None:
        """Train for the time of the plan."""
        if not self.state.learning:
            self._run_lessons(log)
        while self.state.minutes < self.plan.minutes:
            self._run_stage(log)
        self.report(0.0, log, 300)

    def _run_lessons(self, log: Callable[[str], None], every: int = 50) -> None:
        """Train the tower alone on patch labels until the goal is reached or the time is over."""
        last, sums, steps, saved = time.monotonic(), dict[str, float](), 0, self.state.minutes
        lessons = prefetch(self.lesson, self.state.lessons)
        for batch in lessons:
            for name, value in self.study(batch).items():
                sums[name] = sums.get(name, 0.0) + value
            steps += 1
            now = time.monotonic()
            self.state.minutes, last = shared_clock(self.state.minutes + (now - last) / 60), now
            over = self.state.minutes >= LESSONS_LATEST * self.plan.minutes
            if self.state.lessons % every == 0:
                means = {name: value / steps for name, value in sums.items()}
                scores = " ".join(f"{name}={value:.3f}" for name, value in means.items())
                log(f"{self.state.minutes:6.1f} min lessons {self.state.lessons} {scores}")
                over = over or (steps == every and all(means[name] >= goal for name, goal in LESSONS_GOAL.items()))
                sums, steps = {}, 0
            if over or self.state.minutes - saved > self.plan.report_minutes:
                self.state.learning, saved = over, self.state.minutes
                self.save()
            if over:
                break
        lessons.close()

    def _run_stage(self, log: Callable[[str], None]) -> None:
        """Train on the current stage until its goal is reached or its time is over."""
        last, seen, total = time.monotonic(), self.state.minutes, 0.0
        goal, end = STAGES[self.state.stage].goal, LATEST[self.state.stage] * self.plan.minutes
        steps = 0
        batches = prefetch(self.make, self.state.step)
        for batch in batches:
            total, steps = total + self.step(batch), steps + 1
            now = time.monotonic()
            self.state.minutes, last = shared_clock(self.state.minutes + (now - last) / 60), now
            if self.state.minutes >= self.plan.minutes:
                break
            if self.state.minutes - seen < self.plan.report_minutes:
                continue
            right = self.report(total / steps, log)
            seen, total, steps, last = self.state.minutes, 0.0, 0, time.monotonic()
            reached = bool(goal) and all(right.get(kind, 0.0) >= value for kind, value in goal.items())
            if self.state.stage + 1 < len(STAGES) and (reached or self.state.minutes >= end):
                self.state.stage += 1
                self.save()
                break
        batches.close()


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes; a missing gradient counts as zero."""
    world = rank_and_world()[1]
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
    """The minutes of rank 0, so that all processes change stages and stop together."""
    if rank_and_world()[1] == 1:
        return minutes
    shared = torch.tensor([minutes], dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)
