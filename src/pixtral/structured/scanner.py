"""Reads the JSON array of tool calls character by character, giving names and arguments as soon as they are there."""

from __future__ import annotations

import enum
import json

_BLANK = " \t\r\n"
_OPEN, _CLOSE = "{[", "}]"


class Broken(Exception):
    """What came is no array of calls."""


class _At(enum.Enum):
    """What is expected next."""

    ARRAY = enum.auto()  # [
    CALL = enum.auto()  # { of the first call
    KEY = enum.auto()  # " of a key, or } of a call without any
    COLON = enum.auto()
    VALUE = enum.auto()
    IN_KEY = enum.auto()
    IN_VALUE = enum.auto()
    AFTER_VALUE = enum.auto()  # , or }
    AFTER_CALL = enum.auto()  # , or ]
    NEXT_CALL = enum.auto()  # {
    NEXT_KEY = enum.auto()  # "
    END = enum.auto()


class CallScanner:
    """For `[{"name": "f", "arguments": {...}}, ...]`, keys in any order, others left out.

    `push` gives (name or None, piece of the arguments) pairs: a name begins the next call. The pieces of a call joined
    are the text of its arguments, an object, as the model wrote it.
    """

    def __init__(self) -> None:
        self._at = _At.ARRAY
        self._word = ""  # raw text of the key, or of a value that is needed whole
        self._key = ""
        self._name: str | None = None  # of the call at hand
        self._held = ""  # arguments that came before the name
        self._has_arguments = False
        self._depth = 0
        self._string = self._escaped = False
        self._found: list[tuple[str | None, str]] = []

    def push(self, text: str) -> list[tuple[str | None, str]]:
        """What these characters complete.

        Raises:
            Broken: they do not go on the way calls do.
        """
        self._found = []
        for character in text:
            self._take(character)
        return self.salvage()

    def salvage(self) -> list[tuple[str | None, str]]:
        """What the last `push` completed, also if it broke off."""
        return _joined(self._found)

    def _take(self, character: str) -> None:
        at = self._at
        if at is _At.IN_KEY:
            self._word += character
            if self._ends_string(character):
                self._key, self._at = self._load(self._word), _At.COLON
        elif at is _At.IN_VALUE:
            self._in_value(character)
        elif character in _BLANK:
            pass
        elif at is _At.VALUE:
            self._begin_value(character)
        elif character == '"' and at in (_At.KEY, _At.NEXT_KEY):
            self._word, self._at = '"', _At.IN_KEY
        elif character == "{" and at in (_At.CALL, _At.NEXT_CALL):
            self._name, self._held, self._has_arguments, self._at = None, "", False, _At.KEY
        elif character == "}" and at in (_At.KEY, _At.AFTER_VALUE):
            self._end_call()
        else:
            follows = {
                (_At.ARRAY, "["): _At.CALL,
                (_At.CALL, "]"): _At.END,
                (_At.COLON, ":"): _At.VALUE,
                (_At.AFTER_VALUE, ","): _At.NEXT_KEY,
                (_At.AFTER_CALL, ","): _At.NEXT_CALL,
                (_At.AFTER_CALL, "]"): _At.END,
            }
            if (at, character) not in follows:
                raise Broken(f"{character!r} came where {at.name} was expected")
            self._at = follows[at, character]

    def _begin_value(self, character: str) -> None:
        self._word, self._depth, self._string, self._at = "", 0, False, _At.IN_VALUE
        if self._key == "arguments" and (character not in '{"' or self._has_arguments):
            raise Broken(f"arguments begin with {character!r}")
        if self._key == "name" and (character != '"' or self._name is not None):
            raise Broken(f"a name begins with {character!r}")
        self._in_value(character)

    def _in_value(self, character: str) -> None:
        if not self._string and self._depth == 0 and character in ",}]" + _BLANK:  # behind a number or a constant
            self._at = _At.AFTER_VALUE
            self._take(character)
            return
        self._keep(character)
        if self._string:
            if self._ends_string(character):
                self._string = False
        elif character == '"':
            self._string, self._escaped = True, False
        elif character in _OPEN:
            self._depth += 1
        elif character in _CLOSE:
            self._depth -= 1
        if not self._string and self._depth == 0 and character in '"}]':
            self._end_value()

    def _keep(self, character: str) -> None:
        streams = self._key == "arguments" and (self._word or character) == "{"
        if self._key == "name" or (self._key == "arguments" and not streams):
            self._word += character
        elif streams:
            self._word = "{"  # an object, which is given out as it comes
            self._argue(character)

    def _argue(self, text: str) -> None:
        self._has_arguments = True
        if self._name is None:
            self._held += text
        else:
            self._found.append((None, text))

    def _end_value(self) -> None:
        self._at = _At.AFTER_VALUE
        if self._key == "name":
            self._name = self._load(self._word)
            self._found.append((self._name, self._held))
        elif self._key == "arguments" and self._word != "{":  # an object that was packed into a string
            text = self._load(self._word)
            try:
                packed = json.loads(text)
            except ValueError:
                packed = None
            if not isinstance(packed, dict):
                raise Broken("arguments are a string that holds no object")
            self._argue(text)

    def _end_call(self) -> None:
        if self._name is None:
            raise Broken("a call has no name")
        if not self._has_arguments:
            self._argue("{}")
        self._at = _At.AFTER_CALL

    def _ends_string(self, character: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            return True
        return False

    @staticmethod
    def _load(word: str) -> str:
        try:
            return str(json.loads(word))
        except ValueError as error:
            raise Broken(f"{word!r} is no string") from error


def _joined(found: list[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    """Neighbouring pieces of one call as one."""
    joined: list[tuple[str | None, str]] = []
    for name, text in found:
        if name is None and joined:
            joined[-1] = (joined[-1][0], joined[-1][1] + text)
        else:
            joined.append((name, text))
    return joined
