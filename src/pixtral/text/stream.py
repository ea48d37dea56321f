"""Text while it is being generated: ids go in one at a time, whole characters come out as soon as they are certain."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class StreamTokenizer(Protocol):
    """What a StreamDecoder asks of a tokenizer; see `pixtral.text.protocol.Tokenizer`."""

    @property
    def byte_level(self) -> bool: ...
    @property
    def joins_over_special(self) -> bool: ...
    def id_to_bytes(self, token_id: int) -> bytes | None: ...
    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class StreamDecoder:
    """Decodes ids one at a time. The pieces joined are exactly the text of all ids decoded at once.

    A character whose bytes are spread over several ids appears when its last byte is there; U+FFFD stands for bytes
    that are no UTF-8.

    Args:
        tokenizer: a MistralCommonTokenizer or HuggingFaceTokenizer.
        skip_special_tokens: leave the control tokens out.
    """

    def __init__(self, tokenizer: StreamTokenizer, *, skip_special_tokens: bool = True) -> None:
        self.push: Callable[[int], str]
        self.finish: Callable[[], str]
        decoder = (_Bytes if tokenizer.byte_level else _Windows)(tokenizer, skip_special_tokens)
        self.push, self.finish = decoder.push, decoder.finish


class _Bytes:
    """For byte-level vocabularies: an incremental UTF-8 decoder, which needs no earlier ids."""

    def __init__(self, tokenizer: StreamTokenizer, skip: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes."""
        data = self._tokenizer.id_to_bytes(token_id)
        if data is not None:
            return self._utf8.decode(data)
        name = "" if self._skip else self._tokenizer.ids_to_text([token_id], False)
        if self._tokenizer.joins_over_special:
            return self._utf8.decode(name.encode("utf-8"))
        return self.finish() + name

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _Windows:
    """For other vocabularies: decode the last few ids with and without the new one, and give out the difference.

    The window begins at ids that show visible text, because a blank at the very start of a text may be dropped.
    """

    def __init__(self, tokenizer: StreamTokenizer, skip: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip
        self._ids: list[int] = []
        self._known = 0  # of the ids in the window, how many are given out
        self._text = ""  # what they are

    def push(self, token_id: int) -> str:
        """The text that this id completes."""
        self._ids.append(token_id)
        text = self._tokenizer.ids_to_text(self._ids, self._skip)
        if text.endswith("\ufffd") or not text.startswith(self._text):
            return ""
        return self._give_out(text)

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        piece = self._give_out(self._tokenizer.ids_to_text(self._ids, self._skip)) if self._ids else ""
        self._ids, self._known, self._text = [], 0, ""
        return piece

    def _give_out(self, text: str) -> str:
        piece = text[len(self._text) :]
        recent = self._ids[self._known :]
        recent_text = self._tokenizer.ids_to_text(recent, self._skip)
        if recent_text.strip():
            self._ids, self._text = recent, recent_text
        else:
            self._text = text
        self._known = len(self._ids)
        return piece


# FOLDED pixtral.text.stream: The text of an answer as it comes: whole characters, up to the first stop string (no torch).


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
