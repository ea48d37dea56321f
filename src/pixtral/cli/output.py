"""Input and output of the commands: tables and images on a terminal, plain text in a pipe, errors in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

from pixtral.errors import ImageError

if TYPE_CHECKING:
    import os

    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

    from pixtral.assistant import Answer
    from pixtral.images.limits import ImageLimits


def complain(error: BaseException) -> None:
    """Print `error: ...` in one line on stderr."""
    from rich.markup import escape

    message = " ".join(str(error).split())
    if sys.stderr.isatty():
        console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    else:
        typer.echo(f"error: {message}", err=True)


def fail(error: BaseException) -> NoReturn:
    """Print the error and end with exit code 1."""
    complain(error)
    raise typer.Exit(1) from error


def console(*, stderr: bool = False) -> Console:
    """A rich console without automatic highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_json(value: object) -> None:
    """One JSON object, readable on a terminal and on one line in a pipe."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> None:
    """A table; `numbers` are the columns to be aligned to the right."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        if title:
            typer.echo(title)
        for row in (columns, *rows):
            cells = [
                cell.rjust(width) if place in numbers else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            typer.echo("  ".join(cells).rstrip())
        return
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def note(text: str) -> None:
    """A remark on stderr, dimmed, and only on a terminal."""
    if sys.stderr.isatty():
        from rich.markup import escape

        console(stderr=True).print(f"[dim]{escape(text)}[/]", soft_wrap=True)


def cost(answer: Answer) -> str:
    """Tokens and seconds of an answer in one line."""
    usage, timings = answer.usage, answer.timings
    image = f" ({usage.image_tokens} of them image)" if usage.image_tokens else ""
    speed = f" · {timings.tokens_per_second:.0f} tokens/s" if timings.per_token else ""
    end = {"stop": "", "length": " · cut off: the limit of new tokens is reached", "abort": " · stopped"}
    return (
        f"{usage.prompt_tokens} prompt tokens{image} · {usage.completion_tokens} new · "
        f"first after {timings.first_token:.2f} s{speed}{end[answer.finish_reason]}"
    )


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner while something takes time; nothing in a pipe."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield
        return
    with console(stderr=True).status(f"[dim]{text}[/]"):
        yield


def half_blocks(image: Image, *, max_width: int = 48, max_height: int = 20) -> Text:
    """The image for a terminal, scaled to fit into max_width columns and max_height lines.

    Every character cell is a half block that shows two pixels, one above the other.
    """
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    scale = min(max_width / image.width, 2 * max_height / image.height)
    width = max(1, round(image.width * scale))
    height = max(2, round(image.height * scale / 2) * 2)
    small = image.convert("RGB").resize((width, height))
    data = small.tobytes()
    text = Text(no_wrap=True)
    for top in range(0, height, 2):
        for x in range(width):
            upper, lower = 3 * (top * width + x), 3 * ((top + 1) * width + x)
            style = Style(
                color=Color.from_rgb(*data[upper : upper + 3]), bgcolor=Color.from_rgb(*data[lower : lower + 3])
            )
            text.append("▀", style)
        text.append("\n")
    return text


def open_image(source: str | os.PathLike[str], limits: ImageLimits | None = None) -> Image:
    """The image of a path or URL.

    Raises:
        ImageError: it cannot be fetched or read; the message names the source.
    """
    from pixtral.images.limits import ImageLimits
    from pixtral.images.source import load_image

    try:
        return load_image(source, limits=limits or ImageLimits())
    except ImageError as error:
        name = shortened(str(source))
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def shortened(source: str) -> str:
    """A source for a table or a message, cut: data URIs and base64 text can be very long."""
    return source if len(source) <= 120 else f"{source[:60]}…"
