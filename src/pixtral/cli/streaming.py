"""An answer written to the terminal as it comes, which Ctrl-C stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from pixtral.cli.output import waiting

if TYPE_CHECKING:
    from pixtral.assistant import Answer, AnswerStream


def show(stream: AnswerStream) -> Answer:
    """Print the pieces as they come, and a line's end."""
    with stopped_by_interrupt(stream):
        with waiting("reading"):
            first = next(stream, "")
        _write(first)
        for piece in stream:
            _write(piece)
    _write("\n")
    return stream.answer


@contextmanager
def stopped_by_interrupt(stream: AnswerStream) -> Iterator[None]:
    """Ctrl-C ends the answer after the token in work; a second one is an ordinary interrupt."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stream.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
