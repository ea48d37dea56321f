"""Tokens to text while they are generated: whole characters, up to the first stop string (imports no torch)."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Decodes(Protocol):
    """Any tokenizer: ids to text. Those of this package are decoded byte by byte, others by comparing texts."""

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """The text of a list of ids."""
        ...


class StreamDecoder:
    """Decodes ids one at a time. The pieces joined are exactly the text of all ids decoded at once.

    A character whose bytes are spread over several ids appears when its last byte is there; U+FFFD stands for bytes
    that are no UTF-8.
    """

    def __init__(self, tokenizer: Decodes, *, skip_special_tokens: bool = True, **decode_kwargs: Any) -> None:
        """
        Args:
            tokenizer: a tokenizer of this package, or any object with `decode`.
            skip_special_tokens: leave the control tokens out.
            decode_kwargs: further arguments of `tokenizer.decode`.
        """
        clean = decode_kwargs.get("clean_up_tokenization_spaces")
        clean = getattr(tokenizer, "clean_up_tokenization_spaces", False) if clean is None else clean
        own: Any = tokenizer if hasattr(tokenizer, "ids_to_text") else None
        plain = own is not None and not clean and decode_kwargs.keys() <= {"clean_up_tokenization_spaces"}
        decoder: _Bytes | _Windows
        if plain and own.byte_level:
            decoder = _Bytes(own, skip_special_tokens)
        elif plain:
            decoder = _Windows(lambda ids: str(own.ids_to_text(ids, skip_special_tokens)))
        else:
            # False is the default of decode(), which need not know the argument then
            options = {**({"skip_special_tokens": True} if skip_special_tokens else {}), **decode_kwargs}
            decoder = _Windows(lambda ids: str(tokenizer.decode(ids, **options)))
        self.push: Callable[[int], str] = decoder.push
        self.finish: Callable[[], str] = decoder.finish


class _Bytes:
    """For byte-level vocabularies: an incremental UTF-8 decoder, which needs no earlier ids."""

    def __init__(self, tokenizer: Any, skip: bool) -> None:
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
    """For other vocabularies: decode the last few ids with and without the new one, and return the difference.

    The window begins at ids that show visible text, because a blank at the very start of a text may be dropped.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._known = 0  # how many ids of the window have been returned as text
        self._text = ""  # what they are

    def push(self, token_id: int) -> str:
        """The text that this id completes."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        certain = text.rstrip("\ufffd")  # a character whose last bytes may come
        if not text.startswith(self._text) or len(certain) < len(self._text):
            return ""
        if len(certain) < len(text):
            piece, self._text = certain[len(self._text) :], certain
            return piece
        return self._emit(text)

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        piece = self._emit(self._decode(self._ids)) if self._ids else ""
        self._ids, self._known, self._text = [], 0, ""
        return piece

    def _emit(self, text: str) -> str:
        piece = text[len(self._text) :]
        recent = self._ids[self._known :]
        recent_text = self._decode(recent)
        if recent_text.strip():
            self._ids, self._text = recent, recent_text
        else:
            self._text = text
        self._known = len(self._ids)
        return piece


class StopStrings:
    """Passes text on up to the first stop string, holding back an end that may begin one.

    Attributes:
        stop: the stop string that was found, if one was.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stop: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """The text that certainly belongs to no stop string."""
        if not self.stops:
            return text
        self._held += text
        found = [(place, stop) for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            place, self.stop = min(found)
            final, self._held = self._held[:place], ""
            return final
        keep = max(self._overlap(stop) for stop in self.stops)
        cut = len(self._held) - keep
        final, self._held = self._held[:cut], self._held[cut:]
        return final

    def prime(self, text: str) -> None:
        """Text before the first token: a stop string may begin in it, but one that lies in it entirely is not found."""
        self._held = text
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]

    def finish(self) -> str:
        """What was held back and begins no stop string."""
        final, self._held = self._held, ""
        return final

    def _overlap(self, stop: str) -> int:
        """How many characters of the stop string's beginning the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


class Detokenizer:
    """The text of one continuation: tokens in, final text out, and the stop string once it is there."""

    def __init__(
        self,
        tokenizer: Decodes,
        stops: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        """
        Args:
            tokenizer: see `StreamDecoder`.
            stops: strings that end the text.
            skip_special_tokens: leave the control tokens out; with False their names can be part of stop strings.
            prompt_ids: tokens before the first one, in which a stop string may begin.
        """
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
        self._stops = StopStrings(stops)
        if prompt_ids and stops:
            # every token but a control token has at least a byte; the margin absorbs what decoding does to a first one
            window = max(len(text.encode()) for text in stops) + 4
            self._stops.prime("".join(map(self._decoder.push, prompt_ids[-window:])))

    @property
    def stop(self) -> str | None:
        """The stop string that was found, if one was."""
        return self._stops.stop

    def push(self, token: int) -> str:
        """The text that is final with this token."""
        return self._stops.push(self._decoder.push(token))

    def finish(self) -> str:
        """The rest, when no more tokens come; incomplete characters as U+FFFD."""
        piece = self._stops.push(self._decoder.finish())
        return piece if self.stop is not None else piece + self._stops.finish()
