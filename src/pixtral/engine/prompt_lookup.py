"""Prompt-lookup decoding: draft tokens taken from where the newest tokens occur earlier (imports no torch)."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterable, Sequence

from pixtral.engine.request import Request
from pixtral.engine.sampling_params import PromptLookup


class Drafter:
    """Drafts how one request may continue.

    Sampling is not affected: every step takes the logits after the tokens sampled so far, as long as those agree with
    the draft. Processors, penalties, random numbers and ends are exactly those of one token per forward pass.
    """

    def __init__(self, request: Request, settings: PromptLookup, image_token: int | None) -> None:
        self._request = request
        self._proposer = Proposer(
            settings,
            request.prompt_ids,
            skip=image_ids(request.prompt_ids, image_token),
            ends=request.params.stop_token_ids,
        )
        self._num_known = 0  # new tokens that the proposer has

    def extend(self) -> None:
        """Make a draft after the newest token, or lengthen the draft that holds so far."""
        request = self._request
        self._proposer.extend(request.new_ids[self._num_known :])
        self._num_known = len(request.new_ids)
        if request.new_ids:
            # one forward pass gives logits for one token more than the draft has
            draft = self._proposer.propose(request.limit - len(request.new_ids) - 1)
            assert draft[: len(request.draft)] == request.draft, "a draft only grows"
            request.draft += draft[len(request.draft) :]


def image_ids(ids: Iterable[int], image_token: int | None) -> frozenset[int]:
    """The ids of image grids: [IMG], and the tokens that follow one in the prompt ([IMG_BREAK], [IMG_END])."""
    if image_token is None:
        return frozenset()
    return frozenset({image_token}.union(after for token, after in itertools.pairwise(ids) if token == image_token))


class Proposer:
    """One text, and drafts of its continuation.

    An index maps every n-gram to the positions after it, so that the cost of a draft does not depend on the length of
    the text. While the text continues as it did at an earlier position, drafts follow that position; when it departs
    from there, a position is looked up again, preferably after the point of departure.
    """

    def __init__(
        self, settings: PromptLookup, ids: Iterable[int], *, skip: Collection[int] = (), ends: Collection[int] = ()
    ) -> None:
        """
        Args:
            settings: how much to draft.
            ids: the prompt.
            skip: tokens that are neither matched nor drafted: those of images.
            ends: tokens that end the text; they are not drafted, since nothing follows them.
        """
        self.settings = settings
        self._skip = frozenset(skip)
        self._never = self._skip.union(ends)
        self._ids: list[int] = []
        self._plain = 0  # how many of the newest tokens are not to be skipped
        self._places: list[dict[int, list[int]]] = [{} for _ in range(settings.max_ngram)]  # by size - 1
        self._source: int | None = None  # the position whose token is expected next
        self._agreeing = 0  # how many tokens before that position are known to equal the newest ones
        self._left = 0  # where the text departed from a position that it had followed
        self.extend(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in ids:
            place = len(self._ids)
            for places, key in zip(self._places, self._keys(), strict=False):
                places.setdefault(key, []).append(place)
            self._follow(token)
            self._ids.append(token)
            self._plain = 0 if token in self._skip else self._plain + 1

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where the newest tokens do not occur earlier.

        The longer the text has agreed with the position that it follows, the more tokens are drafted from there:
        rejected tokens cost rows of a forward pass.
        """
        if self._source is None:
            self._look_up()
        if self._source is None:
            return []
        count = min(limit, self.settings.num_tokens, (1 << min(self._agreeing, 30)) - 1)
        draft: list[int] = []
        for place in range(self._source, self._source + count):
            # past the end of the text the draft continues itself: repetitions repeat
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
