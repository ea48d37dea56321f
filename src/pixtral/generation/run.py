"""One call of generate(): the padded view for processors, criteria and streamers, and what the call returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pixtral.engine.request import Request
from pixtral.errors import GenerationError
from pixtral.generation.loop import Generation, Step
from pixtral.generation.settings import Settings
from pixtral.layers.outputs import ModelOutput


@dataclasses.dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Fields by attribute, by name and by place, as in Transformers.

    Attributes:
        sequences: (B, S) int64: prompt, new tokens, padding.
        scores: with output_scores, for each step (B, V) float32: what the tokens were sampled from, after penalties and
            filters. Where a sequence has already ended the padding token has 0 and all others -inf: certainty, which
            adds nothing to a sum of log probabilities.
        logits: with output_logits, for each step (B, V) float32 as the model gave them; the same where one has ended.
        finish_reasons: for each sequence "stop" (a stop token, string or criterion) or "length".
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    finish_reasons: tuple[str, ...] | None = None


LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
StoppingCriterion = Callable[[Tensor, Any], "bool | Tensor"]


class Streamer(Protocol):
    """Receives the prompt, then the new tokens of each step, then the end."""

    def put(self, value: Tensor) -> None:
        """(B, S) prompt ids first, then (B,) new ids, on the CPU."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


class Run:
    """Iterate to generate, step by step; then `result()` is what generate() returns.

    Leaving the loop early ends the generation; the tokens so far are the result.

    Attributes:
        generation: the engine's loop, with the state of every sequence.
        ids: (B, S) int64, one column more after every step.
    """

    generation: Generation  # set once it is made with this object's `edit`

    def __init__(
        self,
        input_ids: Tensor,
        settings: Settings,
        processors: Sequence[LogitsProcessor],
        criteria: Sequence[StoppingCriterion],
        streamer: Streamer | None,
    ) -> None:
        self.ids = input_ids
        self.settings = settings
        self.processors = processors
        self.criteria = criteria
        self.streamer = streamer
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []

    @property
    def sequences(self) -> list[Request]:
        """State of every sequence: its new tokens, and why it ended."""
        return self.generation.sequences

    def __iter__(self) -> Iterator[Step]:
        try:
            if self.streamer is not None:
                self.streamer.put(self.ids.cpu())
            for step in self.generation:
                self._after(step)
                yield step
        finally:
            if self.streamer is not None:
                self.streamer.end()

    def result(self) -> Tensor | GenerateDecoderOnlyOutput:
        """The sequences so far, alone or with what was asked for."""
        if not self.settings.return_dict:
            return self.ids
        return GenerateDecoderOnlyOutput(
            self.ids,
            tuple(self.scores) if self.settings.output_scores else None,
            tuple(self.logits) if self.settings.output_logits else None,
            tuple(sequence.finish_reason or "length" for sequence in self.sequences),
        )

    def edit(self, scores: Tensor, rows: list[int]) -> Tensor:
        """Custom processors see the whole batch, ended rows too, since they may count rows."""
        full = self._expand(scores, rows)
        ids = self.ids.to(scores.device)
        for processor in self.processors:
            full = processor(ids, full)
            if not isinstance(full, Tensor) or full.shape != (len(ids), scores.shape[-1]):
                raise GenerationError(
                    f"a logits_processor returned {tuple(full.shape) if isinstance(full, Tensor) else type(full)}, "
                    f"expected scores of the shape it was given, {(len(ids), scores.shape[-1])}"
                )
        return full[rows]

    def _after(self, step: Step) -> None:
        """Append a step's tokens and scores, stream them, and evaluate the criteria."""
        column = self.ids.new_full((len(self.ids),), self.settings.pad_token_id or 0)
        column[step.rows] = torch.tensor(step.tokens, dtype=self.ids.dtype, device=self.ids.device)
        self.ids = torch.cat([self.ids, column[:, None]], dim=1)
        if self.settings.return_dict and self.settings.output_scores:
            self.scores.append(self._expand(step.scores, step.rows))
        if self.settings.return_dict and self.settings.output_logits:
            self.logits.append(self._expand(step.logits, step.rows))
        seen = tuple(self.scores) if self.scores else None
        for criterion in self.criteria:
            ended = torch.as_tensor(criterion(self.ids, seen)).expand(len(self.ids))
            for row in ended.nonzero().flatten().tolist():
                self.generation.finish(row)
        if self.streamer is not None:
            self.streamer.put(column.cpu())

    def _expand(self, values: Tensor, rows: list[int]) -> Tensor:
        """(R, V) of the running rows -> (B, V); ended rows are certain of the padding token."""
        if len(rows) == len(self.ids):
            return values
        full = values.new_full((len(self.ids), values.shape[-1]), float("-inf"))
        full[:, self.settings.pad_token_id or 0] = 0.0
        full[rows] = values
        return full
