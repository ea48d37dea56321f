"""The `pixtral` command. Every subcommand is a function in a file of its own, which imports torch only when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pixtral.cli.bench import bench
from pixtral.cli.chat import chat
from pixtral.cli.demo import demo
from pixtral.cli.doctor import doctor
from pixtral.cli.estimate import estimate
from pixtral.cli.inspect import inspect
from pixtral.cli.output import fail
from pixtral.cli.quantize import quantize
from pixtral.cli.serve import serve
from pixtral.errors import PixtralError


class Commands(TyperGroup):
    """Runs a subcommand; a PixtralError becomes one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click or uses the installed one
        try:
            return super().invoke(ctx)
        except PixtralError as error:
            fail(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pixtral import __version__

        typer.echo(f"pixtral {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="pixtral",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would add a quarter of a second to --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run Pixtral vision-language models.

    Exit codes: 0 done, 1 it could not be done (one line on stderr says why), 2 wrong usage.
    """


app.command()(chat)
app.command()(serve)
app.command()(inspect)
app.command()(estimate)
app.command()(quantize)
app.command()(demo)
app.command()(bench)
app.command()(doctor)


def main() -> None:
    """Entry point of the command."""
    app(prog_name="pixtral")
