"""Prompt lookup: draft tokens for a text, taken from where its newest tokens stood before (no torch, no model)."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import numbers
from collections.abc import Collection, Iterable, Sequence

from pixtral.engine.request import Request
from pixtral.errors import GenerationError

DEFAULT_NGRAM = 2


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """How much to draft (the method: github.com/apoorvumang/prompt-lookup-decoding; its names as in Transformers).

    Attributes:
        num_tokens: draft tokens that one forward pass checks, at most (`prompt_lookup_num_tokens`).
        max_ngram: how many of the newest tokens are looked for at first; fewer, down to one, where they never stood
            before (`max_matching_ngram_size`).
    """

    num_tokens: int
    max_ngram: int = DEFAULT_NGRAM

    def __post_init__(self) -> None:
        _check("prompt_lookup_num_tokens", self.num_tokens, "10 is usual, None switches it off")
        _check("max_matching_ngram_size", self.max_ngram, f"None is {DEFAULT_NGRAM}")


def _check(name: str, value: object, hint: str) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise GenerationError(f"{name} is {value!r}, expected an integer of at least 1; {hint}")


def image_ids(ids: Iterable[int], image_token: int | None) -> frozenset[int]:
    """The ids that draw the grid of images: [IMG], and what follows one in the prompt to break or end its row."""
    if image_token is None:
        return frozenset()
    return frozenset({image_token}.union(after for token, after in itertools.pairwise(ids) if token == image_token))


class Proposer:
    """One text, and drafts of how it goes on.

    Every n-gram is kept with the places behind it, so that a draft costs the same however long the text is. As long as
    the text goes on as it did at an earlier place, drafts follow that place; when it departs from there, the place is
    looked up anew, first from where it departed.
    """

    def __init__(
        self, settings: PromptLookup, ids: Iterable[int], *, skip: Collection[int] = (), ends: Collection[int] = ()
    ) -> None:
        """
        Args:
            settings: how much to draft.
            ids: the prompt.
            skip: tokens that are neither matched nor drafted: those that stand for images.
            ends: tokens that end the text; they are not drafted, since nothing would follow them.
        """
        self.settings = settings
        self._skip = frozenset(skip)
        self._never = self._skip.union(ends)
        self._ids: list[int] = []
        self._plain = 0  # how many of the newest tokens are not to be skipped
        self._places: list[dict[int, list[int]]] = [{} for _ in range(settings.max_ngram)]  # by size - 1
        self._source: int | None = None  # the place whose token is expected next
        self._agreeing = 0  # how many tokens before that place are known to equal the newest ones
        self._left = 0  # where the text departed from a place that it had followed
        self.extend(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Iterable[int]) -> None:
        """The text goes on with these tokens."""
        for token in ids:
            place = len(self._ids)
            for places, key in zip(self._places, self._keys(), strict=False):
                places.setdefault(key, []).append(place)
            self._follow(token)
            self._ids.append(token)
            self._plain = 0 if token in self._skip else self._plain + 1

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where the newest tokens never stood before.

        The longer the text has agreed with the place that is followed, the more tokens are taken from there: those
        that prove wrong have cost rows of a forward pass.
        """
        if self._source is None:
            self._look_up()
        if self._source is None:
            return []
        count = min(limit, self.settings.num_tokens, (1 << min(self._agreeing, 30)) - 1)
        draft: list[int] = []
        for place in range(self._source, self._source + count):
            # past the end of the text the draft itself goes on: a text that repeats, repeats again
            token = self._ids[place] if place < len(self._ids) else draft[place - len(self._ids)]
            if token in self._never:
                break
            draft.append(token)
        return draft

    def _keys(self) -> Iterable[int]:
        """The n-grams that the text ends with, from one token to `max_ngram`, each packed into one number."""
        key = 0
        for size in range(1, min(self.settings.max_ngram, self._plain) + 1):
            key |= self._ids[-size] << 32 * (size - 1)
            yield key

    def _follow(self, token: int) -> None:
        if self._source is None:
            return
        if self._ids[self._source] == token and token not in self._skip:
            self._source += 1
            self._agreeing += 1
            return
        if self._agreeing > self.settings.max_ngram:  # more than the match that led there
            self._left = self._source
        self._source = None

    def _look_up(self) -> None:
        keys: Sequence[int] = list(self._keys())
        for size in range(len(keys), 0, -1):
            places = self._places[size - 1].get(keys[size - 1])
            if places:
                behind = bisect.bisect_left(places, self._left)
                self._source = places[min(behind, len(places) - 1)]
                self._agreeing = size
                return


# FOLDED pixtral.engine.prompt_lookup: Drafts of a request: tokens that stood in its text before, run together with the newest one (no torch).


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
            skip=image_ids(request.prompt_ids, image_token),
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
