"""From the tokens of an answer to its words and its tool calls, as they come (no torch)."""

from __future__ import annotations

import dataclasses
import secrets
import string
from collections.abc import Callable, Collection, Sequence

from pixtral.engine.text import AnswerText
from pixtral.structured.scanner import Broken, CallScanner
from pixtral.text.stream import StreamDecoder, StreamTokenizer

ID_LENGTH = 9  # Mistral's prompts take no other
_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A name for a tool call."""
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
    """Reads one answer token by token: words first, then the calls behind [TOOL_CALLS], which is known by its id.

    What looks like calls but is none is words after all. Calls that were begun are never taken back.
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
            stop: strings that end the answer and do not belong to its words.
            ends: tokens that end the answer and do not belong to its words.
            make_id: names calls.
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
        """What was held back, when no more tokens come."""
        if self._scanner is None:
            return Delta("" if self._words.stop is not None else self._words.finish())
        calls: list[CallDelta] = []
        content = self._read(self._decoder.finish(), calls)
        return Delta(content, tuple(calls))

    def _read(self, text: str, calls: list[CallDelta]) -> str:
        """Adds to the calls what this text holds of them; gives what are words after all."""
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
