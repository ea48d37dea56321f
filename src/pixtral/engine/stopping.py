"""When a text ends: strings that stop a sequence, found across token borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decodes(Protocol):
    """The one method of a tokenizer that stop strings need."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of the ids."""
        ...


class StopStrings:
    """Tells whether a stop string ends within the last token of a sequence.

    As in Transformers, the string may begin in the prompt but not lie in it entirely, and it may be followed by other
    characters of the same token. Special tokens count with their names, so that "</s>" can be a stop string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Decodes) -> None:
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        # every token but a special one has at least a byte; the margin absorbs what decoding does to a first token
        self.window = max((len(text.encode()) for text in self.strings), default=0) + 4

    def match(self, ids: Sequence[int]) -> str | None:
        """The stop string that the last of these ids completes, or None."""
        if not self.strings or not ids:
            return None
        tail = list(ids[-self.window :])
        text = self.tokenizer.decode(tail, skip_special_tokens=False)
        before = self.tokenizer.decode(tail[:-1], skip_special_tokens=False).rstrip("\ufffd") if tail[:-1] else ""
        for string in self.strings:
            # the earliest occurrence whose end lies beyond the text that was there before the last token
            if text.find(string, max(0, len(before) - len(string) + 1)) >= 0:
                return string
        return None
