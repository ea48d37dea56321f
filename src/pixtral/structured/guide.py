"""Guides of the engine: which tokens a grammar lets come next."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pixtral.engine.request import Guide
from pixtral.errors import StructureError

if TYPE_CHECKING:
    import llguidance

# Seconds of computing that a step of one answer may take, and what it may take beyond them in all. Ambiguous grammars
# cost more with every token, and others wait for each.
STEP_SECONDS = 0.005
SPARE_SECONDS = 0.25

Bits = np.ndarray[Any, np.dtype[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What guides know of a vocabulary.

    Attributes:
        end: the token that ends an answer.
        sayable: bits of the tokens that an answer may have at all, padded to 32 bits.
        quotes, brackets: tokens that are one quotation mark, one closing bracket of JSON.
        id_to_bytes: the bytes of a token, None for a control token.
    """

    end: int
    sayable: Bits
    quotes: tuple[int, ...]
    brackets: tuple[int, ...]
    id_to_bytes: Callable[[int], bytes | None]


class GrammarGuide:
    """Follows one answer through a grammar; once the grammar is complete, only the end may come.

    A model that would end where the grammar does not let it would go on with words that it does not mean, in an open
    string perhaps for ever. In JSON there is a token that it means instead: the one that closes the string, the array
    or the object. So that one is as likely as the end would have been.

    Args:
        matcher: at the grammar's beginning; this guide's own.
        tokens: of the vocabulary.
        param: the field of the request that the grammar came from.
        json: whether all text is JSON.
    """

    def __init__(self, matcher: llguidance.LLMatcher, tokens: Tokens, param: str, *, json: bool) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._param = param
        self._string = InString() if json else None
        self._bits: Bits = np.zeros_like(tokens.sayable)
        self._overspent = 0.0

    def mask(self, scores: Any) -> None:
        """Set the scores of tokens that may not come to -inf."""
        begin = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        self._spend(time.thread_time() - begin)
        if self._matcher.is_stopped():  # whatever else was done to the score of the end
            scores.fill_(-np.inf)
            scores[self._tokens.end] = 0.0
            return
        self._bits &= self._tokens.sayable
        if not self._bits.any():
            raise StructureError(f"{self._param}: the grammar wants a control token; leave it out", self._param)
        if self._string is not None:
            wish = float(scores[self._tokens.end])
            for closer in self._tokens.quotes if self._string.inside else self._tokens.brackets:
                scores[closer] = max(wish, float(scores[closer]))
        keep_only(scores, self._bits)

    def advance(self, token: int) -> None:
        """The token was chosen."""
        begin = time.thread_time()
        taken = self._matcher.consume_token(token)
        self._overspent += time.thread_time() - begin
        if not taken:
            assert "doesn't satisfy" not in self._matcher.get_error(), f"token {token} came although it was forbidden"
            self._check()
        if self._string is not None:
            self._string.push(self._tokens.id_to_bytes(token) or b"")

    def _spend(self, seconds: float) -> None:
        self._overspent = max(self._overspent + seconds - STEP_SECONDS, 0.0)
        if self._overspent > SPARE_SECONDS:
            raise StructureError(
                f"{self._param}: the grammar takes too long to follow, so that others would wait; make its rules less "
                "ambiguous",
                self._param,
            )

    def _check(self) -> None:
        matcher = self._matcher
        if matcher.is_error():
            reason = matcher.get_error().partition("\n<state>")[0]
            raise StructureError(
                f"{self._param}: the grammar became too complex to follow ({reason}); simplify it", self._param
            )
        if matcher.is_stopped() and not matcher.is_accepting():
            raise StructureError(
                f"{self._param}: the grammar has come to a place where nothing can follow; check its rules", self._param
            )


class InString:
    """Tells whether valid JSON, coming in pieces, stands inside a string."""

    def __init__(self) -> None:
        self.inside = False
        self._escaped = False

    def push(self, data: bytes) -> None:
        """The next bytes."""
        for byte in data:
            if self._escaped:
                self._escaped = False
            elif byte == ord('"'):
                self.inside = not self.inside
            elif byte == ord("\\"):
                self._escaped = self.inside


class LaterGuide:
    """Lets everything come until one token has; from then on a grammar says.

    Args:
        trigger: the token.
        begin: makes the guide for what comes behind it.
    """

    def __init__(self, trigger: int, begin: Callable[[], Guide]) -> None:
        self._trigger = trigger
        self._begin = begin
        self._guide: Guide | None = None

    def mask(self, scores: Any) -> None:
        """As the grammar says, if it has begun."""
        if self._guide is not None:
            self._guide.mask(scores)

    def advance(self, token: int) -> None:
        """The token was chosen."""
        if self._guide is not None:
            self._guide.advance(token)
        elif token == self._trigger:
            self._guide = self._begin()


class WithoutGuide:
    """Lets everything come but one token."""

    def __init__(self, token: int) -> None:
        self._token = token

    def mask(self, scores: Any) -> None:
        """Without the token."""
        scores[self._token] = -np.inf

    def advance(self, token: int) -> None:
        """Nothing changes."""


def keep_only(scores: Any, bits: Bits) -> None:
    """Set those of the scores (V,) to -inf whose bit is not set, or that have none; in place."""
    count = min(len(scores), 8 * len(bits))
    if scores.device.type == "cpu":
        view = scores.numpy()
        view[:count] += np.take(_costs(), bits, axis=0).reshape(-1)[:count]  # 2 to 15 times as fast as a mask of bools
        view[count:] = -np.inf
        return
    forbidden = np.flatnonzero(np.unpackbits(bits, count=count, bitorder="little") == 0)
    scores[forbidden.tolist()] = -np.inf
    scores[count:] = -np.inf


@functools.cache
def _costs() -> np.ndarray[Any, np.dtype[np.float32]]:
    """(256, 8): for each byte, 0 where a bit is set and -inf where not."""
    flags = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(flags == 1, np.float32(0), np.float32(-np.inf)).astype(np.float32)
