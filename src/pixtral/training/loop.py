"""The training loop of the embedded model: a curriculum, a clock, a checkpoint every few minutes.

Progress is measured in minutes of training, not in steps, so the learning rate reaches its end in time on any
machine. The state (weights, optimiser, stage, step, minutes used) is written atomically; starting again continues.
"""

from __future__ import annotations

import math
import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.training.batches import Batch, Encoder, Stage, make_batch, prefetch
from pixtral.training.evaluate import accuracy, forward, training_precision
from pixtral.training.pointing import pointing_loss, watched
from pixtral.training.warmup import LabelledPictures, Probe, make_labelled, probe_loss

_NAMING = {"describe": 1.0, "colour": 1.0, "shape": 1.0}
_PLACING = {**_NAMING, "position": 1.0}
_COUNTING = {**_PLACING, "count": 1.0}
_EVERYTHING = {
    "describe": 1.0, "colour": 1.2, "shape": 1.2, "position": 1.5, "count": 1.5, "relation": 0.6, "exists": 0.6,
}  # fmt: skip

STAGES = (
    Stage((1,), _NAMING, 1, {"colour": 0.9, "shape": 0.6}, sides=(88, 128)),
    Stage((1, 2), _PLACING, 3, {"colour": 0.9, "shape": 0.7, "position": 0.75}),
    Stage((1, 2, 3), _COUNTING, 4, {"colour": 0.9, "shape": 0.75, "position": 0.8, "count": 0.7}),
    Stage((1, 2, 3, 4, 5), _EVERYTHING, 5),
)
"""The curriculum. A task mixture from the start stays at chance for a long time; this does not."""

LATEST = (0.25, 0.45, 0.6, 1.0)
"""Fraction of the time after which a stage ends even if its goal is not reached."""

LESSONS_GOAL = {"colour": 0.93, "shape": 0.7, "middle": 0.88, "place": 0.8}
"""Share of right patch labels at which the tower's first lessons end (see `warmup`)."""

LESSONS_LATEST = 0.2
"""Fraction of the time after which the first lessons end in any case."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run depends on besides the data."""

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
    """Where a run stands; `learning` is false until the tower's first lessons are over."""

    learning: bool = False
    lessons: int = 0
    step: int = 0
    stage: int = 0
    pictures: int = 0
    minutes: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def initialise(model: nn.Module, seed: int, layers: int = 4) -> None:
    """Normal weights of deviation 1 / sqrt(inputs), smaller into the residual stream and the logits; norms 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.5 if "embed_tokens" in name else 0.02 if "lm_head" in name else weight[0].numel() ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= math.sqrt(2 * layers)
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def learning_rate(plan: Plan, step: int, progress: float) -> float:
    """Linear warm-up by steps, constant, then a cosine to 1 % over the last part of the time."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    late = max(0.0, (min(progress, 1.0) - plan.decay_from) / (1 - plan.decay_from))
    return plan.learning_rate * warm * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * late)))


class Trainer:
    """Owns model, optimiser and state of a run, and its folder."""

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
        self.pointed = 0.0

        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    @property
    def checkpoint(self) -> pathlib.Path:
        """The file that holds the run."""
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

    def lesson(self, number: int) -> LabelledPictures:
        """Batch `number` of the tower's first lessons."""
        rng = np.random.default_rng([self.plan.seed, 2**20, number * self.world + self.rank])
        return make_labelled(rng, self.plan.batch_size)

    def study(self, batch: LabelledPictures) -> dict[str, float]:
        """One update of the tower from patch labels; the share of right ones."""
        with training_precision(self.plan.bfloat16):
            seen = self.model.model.vision_tower.encode(list(batch.pixels))
            loss, right = probe_loss(seen, self.probe, batch.labels)
        self._update(loss, self.state.lessons)
        self.state.lessons += 1
        return {**right, "loss": loss.item()}

    def step(self, batch: Batch) -> float:
        """One update of the weights from answers, patch labels and pointers; the loss of the answers."""
        with watched(self.model) as given:
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
        self.state.pictures += len(batch.lengths) * self.world
        return loss.item()

    def _update(self, loss: torch.Tensor, step: int) -> None:
        rate = learning_rate(self.plan, step, self.state.minutes / self.plan.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _average_gradients(self) -> None:
        """The mean of all processes' gradients, in place; a parameter without one counts as zero."""
        if self.world == 1:
            return
        parameters = [*self.model.parameters(), *self.probe.parameters()]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        packed = torch.cat([gradient.flatten() for gradient in gradients]) / self.world
        dist.all_reduce(packed)
        for gradient, mean in zip(gradients, packed.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _clock(self, minutes: float) -> float:
        """The first process's minutes: all processes change stages and stop together."""
        if self.world == 1:
            return minutes
        shared = torch.tensor([minutes], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)

    def report(self, loss: float, log: Callable[[str], None], size: int = 96) -> dict[str, float]:
        """Measure on held-out pictures of the current stage, log a line, remember it, save."""
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
            f"pictures {self.state.pictures} loss {loss:.4f} pointing {self.pointed:.3f} {scores}"
        )
        self.save()
        return right

    def run(self, log: Callable[[str], None] = print) -> None:
        """Train until the time of the plan is used up."""
        if not self.state.learning:
            self._run_lessons(log)
        while self.state.minutes < self.plan.minutes:
            self._run_stage(log)
        self.report(0.0, log, 300)

    def _run_lessons(self, log: Callable[[str], None], every: int = 50) -> None:
        """Teach the tower patch by patch until the goal is reached or the time is over."""
        last, sums, steps, saved = time.monotonic(), dict[str, float](), 0, self.state.minutes
        lessons = prefetch(self.lesson, self.state.lessons)
        for batch in lessons:
            for name, value in self.study(batch).items():
                sums[name] = sums.get(name, 0.0) + value
            steps += 1
            now = time.monotonic()
            self.state.minutes, last = self._clock(self.state.minutes + (now - last) / 60), now
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
            self.state.minutes, last = self._clock(self.state.minutes + (now - last) / 60), now
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
