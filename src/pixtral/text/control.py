"""Control tokens in a rendered prompt: those of the template are tokens, those in the user's strings are text.

A chat template turns a conversation into one string, in which a user's "[IMG]" and the template's own look alike.
So before rendering, the first character of every control token in the user's strings is replaced by a stand-in that
occurs nowhere else. The stand-ins keep the length of every string and pass through the template's filters; what
still looks like a control token afterwards was written by the template. Then the characters are put back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PRIVATE_USE = range(0xF0000, 0x10FFFE)  # planes 15 and 16: no character has a meaning there
_STRUCTURE = ("role", "type")  # values that templates compare, already checked against a short list


class TokenFinder:
    """Finds the longest control token at each place of a text, from the left."""

    def __init__(self, tokens: Iterable[str]) -> None:
        known = sorted({token for token in tokens if token}, key=len, reverse=True)  # `|` takes the first that matches
        # most places are rejected by their first two characters, before a thousand alternatives are tried in turn
        starts, tokens = ("|".join(map(re.escape, some)) for some in (sorted({token[:2] for token in known}), known))
        self._pattern = re.compile(f"(?={starts})({tokens})" if known else "(?!)")
        self._longest = max(map(len, known), default=0)
        self._prefixes = frozenset(token[:length] for token in known for length in range(1, len(token)))

    def starts_in(self, text: str) -> Iterator[int]:
        """Where a token begins, overlapping ones included, or could begin if the text that follows completed it."""
        start = -1
        while match := self._pattern.search(text, start + 1):
            start = match.start()
            yield start
        stripped = text.rstrip()  # templates strip contents before they go on
        for length in range(1, min(self._longest, len(stripped) + 1)):
            if stripped[-length:] in self._prefixes:
                yield len(stripped) - length

    def split(self, text: str) -> list[tuple[bool, str]]:
        """The text cut into (is a token, piece); the pieces joined are the text."""
        pieces = self._pattern.split(text)  # the pattern's group puts the tokens at the odd places
        return [(place % 2 == 1, piece) for place, piece in enumerate(pieces) if piece]


@dataclass(frozen=True)
class Mask:
    """Stand-ins for the characters that begin control tokens; empty when the user's strings hold none."""

    finder: TokenFinder
    stand_ins: Mapping[str, str]

    def hide(self, value: Any) -> Any:
        """The same nested value with stand-ins in its strings; keys of mappings are treated too."""
        if not self.stand_ins:
            return value
        if isinstance(value, str):
            characters = list(value)
            for start in self.finder.starts_in(value):
                characters[start] = self.stand_ins[value[start]]
            return "".join(characters)
        if isinstance(value, Mapping):
            return {self.hide(key): item if key in _STRUCTURE else self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.hide(item) for item in value)
        return value

    def show(self, text: str) -> str:
        """The text with its own characters again."""
        for character, stand_in in self.stand_ins.items():
            text = text.replace(stand_in, character).replace(_escaped(stand_in), character)
        return text

    def split(self, text: str) -> list[tuple[bool, str]]:
        """A rendered text cut into (is a token of the template, piece), with its own characters."""
        return [(is_token, piece if is_token else self.show(piece)) for is_token, piece in self.finder.split(text)]


def mask_for(values: object, finder: TokenFinder) -> Mask:
    """The mask that these nested values need; empty, and free of cost afterwards, if they hold no control token."""
    strings = list(_strings(values))
    needed = sorted({text[start] for text in strings for start in finder.starts_in(text)})
    if not needed:
        return Mask(finder, {})
    whole = "\n".join(strings)
    used = {character for character in whole if ord(character) >= _PRIVATE_USE.start}
    free = (chr(c) for c in _PRIVATE_USE if chr(c) not in used and _escaped(chr(c)) not in whole)
    return Mask(finder, dict(zip(needed, free, strict=False)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            if key not in _STRUCTURE:
                yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _escaped(character: str) -> str:
    """How JSON writes the character in ASCII, which a template may ask for."""
    return json.dumps(character)[1:-1]
