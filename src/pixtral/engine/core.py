"""The core of the engine: plan a step, run it, keep logits until tokens are sampled, append what was sampled."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.model_runner import Runner, Span, spans_of
from pixtral.engine.prompt_lookup import Drafter
from pixtral.engine.request import FinishReason, Request, SchedulerOutput
from pixtral.engine.scheduler import Scheduler


class EngineCore:
    """Requests between prompt and end. `Engine` and `Generation` only differ in how they sample.

    A request is ready when the logits after its newest token are there. With a draft there are several, and the
    request stays ready as long as the sampled tokens agree with the draft.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, image_token: int | None) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.num_steps = 0
        self._image_token = image_token
        self._drafters: dict[Request, Drafter] = {}
        self._logits: dict[Request, collections.deque[tuple[Tensor, int]]] = {}  # tensor and row

    def add(self, family: Sequence[Request]) -> None:
        """Add the continuations of one prompt; the first of them runs it for all."""
        leader, *followers = family
        leader.followers = followers
        for request in family:
            request.leader = None if request is leader else leader
            self.scheduler.add(request)

    def is_ready(self, request: Request) -> bool:
        """Whether a token can be sampled."""
        return request in self._logits

    def plan(self, max_prompt_tokens: int | None = None) -> SchedulerOutput:
        """The next step, drafts included."""
        for request in self.scheduler.running:
            if request.prompt_lookup is not None and request.is_decoding:
                if request not in self._drafters:
                    self._drafters[request] = Drafter(request, request.prompt_lookup, self._image_token)
                self._drafters[request].extend()
        return self.scheduler.schedule(max_prompt_tokens)

    def run(self, plan: SchedulerOutput) -> None:
        """One forward pass, after the images of the plan have been encoded."""
        spans = spans_of(plan)
        if not spans:
            return
        logits = self.runner.run(spans)
        self.num_steps += 1
        self.scheduler.update(plan)
        row = 0
        for span in spans:
            if span.num_logits:
                self._keep(span, logits, row)
                row += span.num_logits

    def logits(self, requests: Sequence[Request]) -> Tensor:
        """(R, V): after the newest token of each, in the model's dtype."""
        places = [self._logits[request][0] for request in requests]
        tensors = {id(tensor) for tensor, _ in places}
        if len(tensors) > 1:
            return torch.stack([tensor[row] for tensor, row in places])
        tensor, rows = places[0][0], [row for _, row in places]
        return tensor if rows == list(range(len(tensor))) else tensor[rows]

    def append(self, request: Request, token: int, stop_reason: str | None = None) -> None:
        """Append a sampled token to a request that is ready.

        Args:
            stop_reason: the stop string that the token completes.
        """
        logits = self._logits[request]
        logits.popleft()
        accepted = bool(request.draft) and request.draft[0] == token
        request.append(token)
        if not logits or not accepted:
            del self._logits[request]
        if token in request.params.stop_token_ids:
            self.finish(request, "stop", token)
        elif stop_reason is not None:
            self.finish(request, "stop", stop_reason)
        elif len(request.new_ids) >= request.limit:
            self.finish(request, "length")

    def finish(self, request: Request, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End a request at any point; it keeps its tokens."""
        if request.finish_reason is None:
            request.finish_reason, request.stop_reason = reason, stop_reason
            self.scheduler.remove(request)
            self.runner.forget(request)
            self._logits.pop(request, None)
            self._drafters.pop(request, None)

    def _keep(self, span: Span, logits: Tensor, row: int) -> None:
        request = span.request
        rows = [(logits, row + i) for i in range(span.num_logits)]
        self._logits.setdefault(request, collections.deque()).extend(rows)
        if request.followers:
            forked, copies = self.scheduler.fork(request)
            self.runner.copy_blocks(copies)
            for follower in forked:
                self._logits[follower] = collections.deque(rows)
