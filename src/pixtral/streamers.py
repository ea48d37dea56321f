"""Text while it is being generated: printed, or handed to another thread piece by piece."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pixtral.errors import GenerationError
from pixtral.text.detokenizer import Decodes, StreamDecoder


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
        self._decoder = StreamDecoder(tokenizer, **{"skip_special_tokens": False, **decode_kwargs})

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
        self.on_finalized_text("".join(map(self._decoder.push, value.flatten().tolist())))

    def end(self) -> None:
        """Hand out what is left and start anew."""
        piece = self._decoder.finish()
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
