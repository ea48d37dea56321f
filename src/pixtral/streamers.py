"""Text while it is being generated: printed, or handed to another thread piece by piece."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any, Protocol, cast

from torch import Tensor

from pixtral.errors import GenerationError
from pixtral.text.stream import StreamDecoder, StreamTokenizer


class Decodes(Protocol):
    """The one method of a tokenizer that streaming needs."""

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """The text of a list of ids."""
        ...


class TextPieces(Protocol):
    """Ids in, text out as soon as it is certain."""

    def push(self, ids: list[int]) -> str:
        """The text that these ids complete; a character of which bytes are missing waits for the next ids."""
        ...

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        ...


def text_pieces(tokenizer: Decodes, decode_kwargs: dict[str, Any]) -> TextPieces:
    """By bytes for this package's tokenizers, by comparing decoded texts for any other."""
    wanted = dict(decode_kwargs)
    skip = bool(wanted.pop("skip_special_tokens", False))
    clean = wanted.pop("clean_up_tokenization_spaces", None)
    clean = getattr(tokenizer, "clean_up_tokenization_spaces", False) if clean is None else clean
    if hasattr(tokenizer, "ids_to_text") and not clean and not wanted:
        return ByteText(StreamDecoder(cast(StreamTokenizer, tokenizer), skip_special_tokens=skip))
    return GrowingText(tokenizer, decode_kwargs)


class ByteText:
    """Through a StreamDecoder, several ids at a time."""

    def __init__(self, decoder: StreamDecoder) -> None:
        self.decoder = decoder

    def push(self, ids: list[int]) -> str:
        """The text that these ids complete."""
        return "".join(map(self.decoder.push, ids))

    def finish(self) -> str:
        """What is left."""
        return self.decoder.finish()


class GrowingText:
    """Through `tokenizer.decode` alone; the pieces joined are the text of all ids.

    Where ids spell no UTF-8 at all, the number of U+FFFD may differ from that of the whole text.
    """

    def __init__(self, tokenizer: Decodes, decode_kwargs: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.decode_kwargs = decode_kwargs
        # Of `ids`, those up to `given` have been handed out as text. They stay in the window because a tokenizer may
        # decode a token differently at the beginning of a text.
        self.ids: list[int] = []
        self.given = 0

    def push(self, ids: list[int]) -> str:
        """The text that these ids complete."""
        self.ids.extend(ids)
        text = self._decode(self.ids)
        if text.endswith("\ufffd"):
            return ""
        return self._hand_out(text)

    def finish(self) -> str:
        """What is left."""
        piece = self._hand_out(self._decode(self.ids))
        self.ids, self.given = [], 0
        return piece

    def _hand_out(self, text: str) -> str:
        piece = text[len(self._decode(self.ids[: self.given])) :]
        if piece:  # ids without text stay: what follows them must not look like the beginning of a text
            self.ids = self.ids[self.given :]
        self.given = len(self.ids)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, **self.decode_kwargs) if ids else ""


class TextStreamer:
    """Prints the text of one sequence to standard output while generate() works on it.

    Args:
        tokenizer: turns ids into text.
        skip_prompt: leave the prompt out.
        **decode_kwargs: for `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Decodes, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._text = text_pieces(tokenizer, decode_kwargs)

    def put(self, value: Tensor) -> None:
        """Take (1, S) prompt ids, then (1,) ids of each step.

        Raises:
            GenerationError: ids of several sequences.
        """
        sequences = len(value) if value.dim() > 1 or not self.next_tokens_are_prompt else 1
        if sequences != 1:
            raise GenerationError(
                f"a text streamer got tokens of {sequences} sequences, it follows one; generate them one by one, or "
                "pass an object with put() and end() of your own"
            )
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.on_finalized_text(self._text.push(value.flatten().tolist()))

    def end(self) -> None:
        """Hand out what is left and start anew."""
        piece = self._text.finish()
        self.next_tokens_are_prompt = True
        self.on_finalized_text(piece, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text, and a newline at the end; subclasses do something else with it."""
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """An iterator over the pieces of text, for another thread than the one that generates.

    Args:
        tokenizer: turns ids into text.
        skip_prompt: leave the prompt out.
        timeout: seconds to wait for a piece; then queue.Empty is raised. None waits for ever.
        **decode_kwargs: for `tokenizer.decode`.
    """

    def __init__(
        self, tokenizer: Decodes, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: queue.Queue[str | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue a piece, and None after the last."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece
