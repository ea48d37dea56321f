"""Drafts of a request: tokens that stood in its text before, run together with the newest one (no torch)."""

from __future__ import annotations

from pixtral.engine.lookup import PromptLookup, Proposer, picture_ids
from pixtral.engine.request import Request


class Drafter:
    """Proposes how one request goes on.

    Whoever chooses the tokens sees nothing of it: every step takes the logits behind the tokens chosen so far, as long
    as those are the draft's. So processors, penalties, draws and ends are exactly those of one token per pass.
    """

    def __init__(self, request: Request, settings: PromptLookup, image_token: int | None) -> None:
        self._request = request
        self._proposer = Proposer(
            settings,
            request.prompt_ids,
            skip=picture_ids(request.prompt_ids, image_token),
            ends=request.params.stop_token_ids,
        )
        self._told = 0  # new tokens that the proposer knows

    def extend(self) -> None:
        """A draft behind the newest token, or more tokens behind the draft that holds so far."""
        request = self._request
        self._proposer.extend(request.new_ids[self._told :])
        self._told = len(request.new_ids)
        if request.new_ids:
            # the logits behind the newest token are those of one more token than the draft has
            draft = self._proposer.propose(request.limit - len(request.new_ids) - 1)
            assert draft[: len(request.draft)] == request.draft, "a draft goes on as it began"
            request.draft += draft[len(request.draft) :]
