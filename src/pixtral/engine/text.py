"""The text of an answer as it comes: whole characters, up to the first stop string (no torch)."""

from __future__ import annotations

from collections.abc import Sequence

from pixtral.text.stream import StreamDecoder, StreamTokenizer


class StopText:
    """Lets text through up to the first stop string, holding back an end that may turn out to begin one.

    Attributes:
        stop: the stop string that was found, if one was.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stop: str | None = None
        self._held = ""

    @property
    def found(self) -> bool:
        """Whether a stop string has come."""
        return self.stop is not None

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string."""
        if not self.stops:
            return text
        self._held += text
        places = [(place, stop) for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if places:
            place, self.stop = min(places)
            certain, self._held = self._held[:place], ""
            return certain
        keep = max(self._overlap(stop) for stop in self.stops)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def finish(self) -> str:
        """What was held back and begins no stop string after all."""
        certain, self._held = self._held, ""
        return certain

    def _overlap(self, stop: str) -> int:
        """How much of the stop string's beginning the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


class AnswerText:
    """Tokens of one continuation to text."""

    def __init__(self, tokenizer: StreamTokenizer, stops: Sequence[str], skip_special_tokens: bool) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
        self._stop_text = StopText(stops)

    @property
    def stop(self) -> str | None:
        """The stop string that has come."""
        return self._stop_text.stop

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        return self._stop_text.push(self._decoder.push(token))

    def finish(self) -> str:
        """The rest, when no more tokens come; incomplete characters as U+FFFD."""
        piece = self._stop_text.push(self._decoder.finish())
        return piece if self._stop_text.found else piece + self._stop_text.finish()
