"""A conversation in the terminal: questions, images, slash commands, and streamed answers that Ctrl-C stops."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from pixtral.cli.output import complain, cost, note, open_image, waiting
from pixtral.errors import PixtralError, PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from pixtral.assistant import Answer, AnswerStream, Assistant
    from pixtral.assistant.options import ChatOptions

_HELP = """\
/image PATH   show an image (a path or URL) with the next question; may be given several times
/reset        forget the conversation and its images
/help         this list
/exit         end, as Ctrl-D does; Ctrl-C stops an answer"""


class Session:
    """Reads and answers lines until the input ends. In a pipe nothing but the answers is written."""

    def __init__(
        self, assistant: Assistant, system: str | None, options: ChatOptions, images: list[Image], name: str
    ) -> None:
        """
        Args:
            assistant: answers the questions.
            system, options: of the conversation.
            images: shown with the first question.
            name: of the model, for messages.
        """
        self.assistant = assistant
        self.conversation = assistant.conversation(system, **options)
        self.name = name
        self.failed = False
        self._ended = False
        self._shown = list(images)
        self._terminal = sys.stdin.isatty()

    def run(self) -> int:
        """The exit code: 1 if a line of a pipe could not be answered."""
        if self._terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  line editing and history for input()
            for image in self._shown:
                note(f"{image.width} x {image.height} pixels; it goes with the first question")
            note(f"{self.name} · /image PATH shows an image, /help says more, Ctrl-D ends")
        while not self._ended and (line := self._read()) is not None:
            if not line.strip():
                continue
            try:
                self._handle(line.strip())
            except PixtralError as error:
                complain(error)
                self.failed = True
        return int(self.failed and not self._terminal)

    def _read(self) -> str | None:
        """The next line; None at the end of the input."""
        try:
            return input("> " if self._terminal else "")
        except EOFError:
            if self._terminal:
                print()
            return None
        except KeyboardInterrupt:
            if not self._terminal:
                raise
            print()
            note("Ctrl-D ends")
            return ""

    def _handle(self, line: str) -> None:
        if not line.startswith("/"):
            self._ask(line)
            return
        command, _, rest = line.partition(" ")
        if command == "/image":
            self._show_image(rest.strip())
        elif command == "/reset":
            self.conversation.reset()
            self._shown.clear()
            note("forgotten")
        elif command in ("/exit", "/quit"):
            self._ended = True
        elif command == "/help":
            print(_HELP)
        else:
            raise PromptError(f"there is no command {command}; /help lists them")

    def _ask(self, question: str) -> None:
        stream = self.conversation.ask(question, list(self._shown), stream=True)
        self._shown.clear()
        try:
            answer = show(stream)
        except KeyboardInterrupt:  # the second Ctrl-C: this turn is dropped
            print()
            note("given up; the conversation is as it was before")
            return
        note(cost(answer))

    def _show_image(self, source: str) -> None:
        if not source:
            raise PromptError("/image needs the path or the URL of an image")
        image = open_image(_unquoted(source), self.assistant.limits)
        self._shown.append(image)
        note(f"{source}: {image.width} x {image.height} pixels; it goes with the next question")


def show(stream: AnswerStream) -> Answer:
    """Print an answer as it is generated."""
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
    """Ctrl-C ends the answer after the current token; a second one is an ordinary interrupt."""
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


def _unquoted(source: str) -> str:
    """The path that a terminal pasted in quotes or with escaped spaces."""
    if os.path.exists(source) or "://" in source:
        return os.path.expanduser(source)
    try:
        words = shlex.split(source)
    except ValueError:
        return source
    return os.path.expanduser(words[0]) if len(words) == 1 else source
