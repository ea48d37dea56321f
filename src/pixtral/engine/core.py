"""The heart of the engine: plan a step, run it, keep the logits until tokens are chosen, note what was chosen."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.model_runner import Runs, Span, spans_of
from pixtral.engine.prompt_lookup import Drafter, PromptLookup
from pixtral.engine.request import FinishReason, Plan, Request
from pixtral.engine.scheduler import Scheduler


class Core:
    """Requests on their way; both `Engine` and `Generation` choose the tokens, and everything else happens here.

    A request is ready when the logits behind its newest token are there. With a draft there are more of them, and
    it stays ready as long as the chosen tokens are the draft's.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runs, prompt_lookup: PromptLookup | None, image_token: int | None
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.num_steps = 0
        self._prompt_lookup = prompt_lookup
        self._image_token = image_token
        self._drafters: dict[Request, Drafter] = {}
        self._held: dict[Request, collections.deque[tuple[Tensor, int]]] = {}  # logits: tensor and row

    def add(self, family: Sequence[Request]) -> None:
        """Continuations of one prompt; the first runs it for all."""
        leader, *followers = family
        leader.followers = followers
        for request in family:
            request.leader = None if request is leader else leader
            self.scheduler.add(request)

    def is_ready(self, request: Request) -> bool:
        """Whether a token can be chosen."""
        return request in self._held

    def plan(self, max_prompt_tokens: int | None = None) -> Plan:
        """The next step, drafts included."""
        if self._prompt_lookup is not None:
            for request in self.scheduler.running:
                if request.is_decoding:
                    self._drafter(request, self._prompt_lookup).extend()
        return self.scheduler.schedule(max_prompt_tokens)

    def run(self, plan: Plan) -> None:
        """One forward pass; images have been encoded. The logits of those who are now ready are kept."""
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

    def advance(self) -> None:
        """Plan, encode and run."""
        plan = self.plan()
        if plan.encode:
            self.runner.encode(plan.encode)
        self.run(plan)

    def logits(self, requests: Sequence[Request]) -> Tensor:
        """(R, V): behind the newest token of each, in the model's dtype."""
        places = [self._held[request][0] for request in requests]
        tensors = {id(tensor) for tensor, _ in places}
        if len(tensors) > 1:
            return torch.stack([tensor[row] for tensor, row in places])
        tensor, rows = places[0][0], [row for _, row in places]
        return tensor if rows == list(range(len(tensor))) else tensor[rows]

    def append(self, request: Request, token: int, stop_reason: str | None = None) -> None:
        """A token was chosen for a request that is ready.

        Args:
            stop_reason: the stop string that the token completes.
        """
        held = self._held[request]
        held.popleft()
        came_true = bool(request.draft) and request.draft[0] == token
        request.append(token)
        if not held or not came_true:
            del self._held[request]
        if token in request.params.stop_token_ids:
            self.finish(request, "stop", token)
        elif stop_reason is not None:
            self.finish(request, "stop", stop_reason)
        elif len(request.new_ids) >= request.limit:
            self.finish(request, "length")

    def finish(self, request: Request, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End a request, at whatever point; its tokens so far stay."""
        if request.finish_reason is None:
            request.finish_reason, request.stop_reason = reason, stop_reason
            self.scheduler.remove(request)
            self.runner.forget(request)
            self._held.pop(request, None)
            self._drafters.pop(request, None)

    def _keep(self, span: Span, logits: Tensor, row: int) -> None:
        request = span.request
        rows = [(logits, row + i) for i in range(span.num_logits)]
        self._held.setdefault(request, collections.deque()).extend(rows)
        if request.followers:
            forked, copies = self.scheduler.fork(request)
            self.runner.copy_blocks(copies)
            for follower in forked:
                self._held[follower] = collections.deque(rows)

    def _drafter(self, request: Request, settings: PromptLookup) -> Drafter:
        if request not in self._drafters:
            self._drafters[request] = Drafter(request, settings, self._image_token)
        return self._drafters[request]
