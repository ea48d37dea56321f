"""Guides: which tokens a grammar allows next, as masks over the scores."""

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

# Seconds that one step of an answer may compute, and the excess that is tolerated in total. Ambiguous grammars cost
# more with every token, and the other requests of the batch wait.
STEP_SECONDS = 0.005
SPARE_SECONDS = 0.25

Bits = np.ndarray[Any, np.dtype[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The vocabulary as guides need it.

    Attributes:
        end: the token that ends an answer.
        allowed: bits of the tokens that may occur in an answer at all, padded to 32 bits.
        quotes, brackets: tokens that are one quotation mark, one closing bracket of JSON.
        id_to_bytes: the bytes of a token, None for a control token.
    """

    end: int
    allowed: Bits
    quotes: tuple[int, ...]
    brackets: tuple[int, ...]
    id_to_bytes: Callable[[int], bytes | None]


class GrammarGuide:
    """Constrains one answer to a grammar; once the grammar is complete, only the end token is allowed.

    Where a model would end the answer but the grammar does not allow it, it would continue with arbitrary text, in an
    open string perhaps without limit. In JSON the token closest to its intention is the one that closes the string,
    array or object, so that one gets at least the score of the end token.

    Args:
        matcher: at the start of the grammar, owned by this guide.
        tokens: of the vocabulary.
        param: the field of the request that the grammar came from.
        json: whether all text is JSON.
    """

    def __init__(self, matcher: llguidance.LLMatcher, tokens: Tokens, param: str, *, json: bool) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._param = param
        self._string = InString() if json else None
        self._bits: Bits = np.zeros_like(tokens.allowed)
        self._overspent = 0.0

    def mask(self, scores: Any) -> None:
        """Set the scores of forbidden tokens to -inf."""
        begin = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        self._spend(time.thread_time() - begin)
        if self._matcher.is_stopped():  # even if another processor forbade the end token
            scores.fill_(-np.inf)
            scores[self._tokens.end] = 0.0
            return
        self._bits &= self._tokens.allowed
        if not self._bits.any():
            raise StructureError(f"{self._param}: the grammar wants a control token; leave it out", self._param)
        if self._string is not None:
            end = float(scores[self._tokens.end])
            for closer in self._tokens.quotes if self._string.inside else self._tokens.brackets:
                scores[closer] = max(end, float(scores[closer]))
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
    """Tracks whether the position in valid JSON, given in pieces, is inside a string."""

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
    """Allows everything up to a trigger token; after it, a guide applies.

    Args:
        trigger: the token.
        begin: makes the guide for what follows it.
    """

    def __init__(self, trigger: int, begin: Callable[[], Guide]) -> None:
        self._trigger = trigger
        self._begin = begin
        self._guide: Guide | None = None

    def mask(self, scores: Any) -> None:
        """By the guide, if the trigger has occurred."""
        if self._guide is not None:
            self._guide.mask(scores)

    def advance(self, token: int) -> None:
        """The token was chosen."""
        if self._guide is not None:
            self._guide.advance(token)
        elif token == self._trigger:
            self._guide = self._begin()


class WithoutGuide:
    """Allows everything but one token."""

    def __init__(self, token: int) -> None:
        self._token = token

    def mask(self, scores: Any) -> None:
        """Forbid the token."""
        scores[self._token] = -np.inf

    def advance(self, token: int) -> None:
        """Does nothing."""


def keep_only(scores: Any, bits: Bits) -> None:
    """Set the scores (V,) whose bit is not set, or that have no bit, to -inf, in place."""
    count = min(len(scores), 8 * len(bits))
    if scores.device.type == "cpu":
        view = scores.numpy()
        view[:count] += np.take(_costs(), bits, axis=0).reshape(-1)[:count]  # 2 to 15 times as fast as a boolean mask
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
