"""Write docs/cli.md from the help of the `pixtral` command: python docs/generate_cli.py (a test compares the two)."""

from __future__ import annotations

import inspect
from pathlib import Path

import typer

from pixtral.cli.main import app

HEADER = """\
# The `pixtral` command

<!-- written by docs/generate_cli.py from the command's own help; do not edit -->
"""


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    parts = [HEADER, text_of(group), options_of(group)]
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        words = [name_of(one) if one.required else f"[{name_of(one)}]" for one in arguments]
        parts.append(f"## pixtral {name}\n\n```\npixtral {name} [OPTIONS] {' '.join(words)}".rstrip() + "\n```\n")
        parts.append(text_of(command))
        parts.append(options_of(command))
    return "\n".join(parts).rstrip() + "\n"


def text_of(command) -> str:
    """The help text, its line breaks kept."""
    return inspect.cleandoc(command.help or "") + "\n"


def options_of(command) -> str:
    """A table of what the command takes."""
    rows = ["| | | default |", "|---|---|---|"]
    for one in command.params:
        if one.param_type_name == "argument":
            rows.append(f"| `{name_of(one)}` | {escaped(one.help)} | |")
            continue
        names = ", ".join(f"`{name}`" for name in sorted(one.opts, key=len))
        value = "" if one.is_flag else f" {one.metavar}"
        default = "" if one.default is None or one.is_flag else f"`{one.default}`"
        rows.append(f"| {names}{value} | {escaped(one.help)} | {default} |")
    return "\n".join(rows) + "\n"


def name_of(argument) -> str:
    """How an argument is written in the usage line."""
    return argument.metavar + ("..." if argument.nargs == -1 else "")


def escaped(text: str | None) -> str:
    """Fit for a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
