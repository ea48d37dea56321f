"""Streaming parser of answers: token ids to text and tool calls, as soon as they are complete (no torch).

Mistral's models write calls as a JSON array after [TOOL_CALLS]; it is scanned character by character, so that names and
arguments can be streamed.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import secrets
import string
from collections.abc import Callable, Collection, Sequence

from pixtral.text.stream import AnswerText, StreamDecoder, StreamTokenizer

_BLANK = " \t\r\n"
_OPEN, _CLOSE = "{[", "}]"
ID_LENGTH = 9  # the only length that Mistral's prompts accept
_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A random id for a tool call."""
    return "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))


@dataclasses.dataclass(frozen=True)
class CallDelta:
    """A piece of a tool call; the first of a call has its id and name.

    Attributes:
        index: which call of the answer, from 0.
        arguments: the next part of their JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclasses.dataclass(frozen=True)
class Delta:
    """What some tokens added to an answer."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class AnswerParser:
    """Parses one answer token by token: text first, then the calls after [TOOL_CALLS], recognised by its id.

    If no valid call follows, the text after [TOOL_CALLS] is content. Calls that were emitted are never retracted.
    """

    def __init__(
        self,
        tokenizer: StreamTokenizer,
        tool_calls_id: int,
        *,
        stop: Sequence[str] = (),
        ends: Collection[int] = (),
        make_id: Callable[[], str] = new_call_id,
    ) -> None:
        """
        Args:
            tokenizer: of the model.
            tool_calls_id: of [TOOL_CALLS].
            stop: strings that end the answer and are not part of its text.
            ends: tokens that end the answer and are not part of its text.
            make_id: makes ids for calls.
        """
        self._tool_calls_id = tool_calls_id
        self._ends = frozenset(ends)
        self._make_id = make_id
        self._words = AnswerText(tokenizer, stop, skip_special_tokens=True)
        self._decoder = StreamDecoder(tokenizer)
        self._scanner: CallScanner | None = None
        self._raw = ""  # of calls, until one has begun
        self._broken = False
        self.num_calls = 0

    def push(self, token_ids: Sequence[int]) -> Delta:
        """What these tokens add."""
        content, calls = "", list[CallDelta]()
        for token in token_ids:
            if token in self._ends:
                continue
            if self._scanner is not None:
                content += self._read(self._decoder.push(token), calls)
            elif token == self._tool_calls_id:
                content += "" if self._words.stop is not None else self._words.finish()
                self._scanner = CallScanner()
            elif self._words.stop is None:
                content += self._words.push(token)
        return Delta(content, tuple(calls))

    def finish(self) -> Delta:
        """What was held back, at the end of the answer."""
        if self._scanner is None:
            return Delta("" if self._words.stop is not None else self._words.finish())
        calls: list[CallDelta] = []
        content = self._read(self._decoder.finish(), calls)
        return Delta(content, tuple(calls))

    def _read(self, text: str, calls: list[CallDelta]) -> str:
        """Append the calls in this text to `calls`; returns what is content because it is no call."""
        assert self._scanner is not None
        if self._broken:
            return "" if self.num_calls else text
        if not self.num_calls:
            self._raw += text
        try:
            found = self._scanner.push(text)
        except Broken:
            self._broken = True
            found = self._scanner.salvage()
        for name, arguments in found:
            if name is not None:
                self.num_calls += 1
                calls.append(CallDelta(self.num_calls - 1, self._make_id(), name, arguments))
            elif arguments and calls:
                calls[-1] = dataclasses.replace(calls[-1], arguments=calls[-1].arguments + arguments)
            elif arguments:
                calls.append(CallDelta(self.num_calls - 1, arguments=arguments))
        if self._broken and not self.num_calls:
            return self._raw
        return ""


class Broken(Exception):
    """The text is not an array of tool calls."""


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
    """For `[{"name": "f", "arguments": {...}}, ...]`, keys in any order, others ignored.

    `push` returns (name or None, piece of the arguments) pairs: a name starts the next call. A call's joined pieces
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
            Broken: they do not continue an array of calls.
        """
        self._found = []
        for character in text:
            self._take(character)
        return self.salvage()

    def salvage(self) -> list[tuple[str | None, str]]:
        """What the last `push` completed, even if it raised."""
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
        if not self._string and self._depth == 0 and character in ",}]" + _BLANK:  # after a number or a constant
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
            self._word = "{"  # an object, emitted as it arrives
            self._emit_arguments(character)

    def _emit_arguments(self, text: str) -> None:
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
        elif self._key == "arguments" and self._word != "{":  # an object encoded as a string
            text = self._load(self._word)
            try:
                decoded = json.loads(text)
            except ValueError:
                decoded = None
            if not isinstance(decoded, dict):
                raise Broken("arguments are a string that holds no object")
            self._emit_arguments(text)

    def _end_call(self) -> None:
        if self._name is None:
            raise Broken("a call has no name")
        if not self._has_arguments:
            self._emit_arguments("{}")
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
