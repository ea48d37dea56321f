"""Logits computed ahead: forward passes check draft tokens of a sequence before they are chosen."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from pixtral.engine.lookup import PromptLookup, Proposer, picture_ids
from pixtral.engine.request import Prompt, SequenceState


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a forward pass is to run of one sequence.

    Attributes:
        ids: every token behind the prompt, draft tokens included.
        count: logits are wanted behind this many of its last tokens; those before them have been run.
    """

    ids: list[int]
    count: int


class Lookahead:
    """The logits of one sequence behind its newest token, and behind the draft tokens that may follow it.

    Whoever chooses the tokens sees nothing of it: every step takes the logits behind the tokens chosen so far, as long
    as those are the draft's. So processors, penalties, draws and ends are exactly those of one token per pass.
    """

    def __init__(self, state: SequenceState, prompt: Prompt, settings: PromptLookup) -> None:
        self._state = state
        self._proposer = Proposer(
            settings,
            prompt.ids,
            skip=picture_ids(prompt.ids, prompt.image_token),
            ends=state.params.stop_token_ids,
        )
        self._told = 0  # new tokens that the proposer knows
        self._begin = 0  # new tokens that were chosen when the draft began
        self._draft: list[int] = []
        self._logits: list[Tensor] = []  # behind the token before the draft, then behind each of the draft

    @property
    def ready(self) -> bool:
        """Whether the next logits are there: every token chosen since the draft began is the draft's."""
        since = self._state.new_ids[self._begin :]
        return len(since) < len(self._logits) and since == self._draft[: len(since)]

    def chunk(self) -> Chunk:
        """What to run now: a draft behind the newest token, or more tokens behind the draft that holds so far."""
        new_ids = self._state.new_ids
        self._proposer.extend(new_ids[self._told :])
        self._told = len(new_ids)
        if not self.ready:
            self._begin, self._draft, self._logits = len(new_ids), [], []
        came_true = len(new_ids) - self._begin
        # the logits behind the newest token are those of one more token than the draft has
        draft = self._proposer.propose(self._state.limit - len(new_ids) - 1) if new_ids else []
        ahead = self._draft[came_true:]
        assert draft[: len(ahead)] == ahead, "a draft goes on as it began"
        self._draft += draft[len(ahead) :]
        return Chunk([*new_ids, *draft], 1 + len(self._draft) - len(self._logits))

    def put(self, logits: Tensor) -> None:
        """(count, V): what the pass gave for the chunk."""
        self._logits += logits.unbind()
        assert len(self._logits) == 1 + len(self._draft)

    def take(self) -> Tensor:
        """(V,): behind the newest token."""
        assert self.ready
        return self._logits[len(self._state.new_ids) - self._begin]
