"""`pixtral serve`: an OpenAI-compatible server. Its options are the fields of the server's settings."""

from __future__ import annotations

import dataclasses
import inspect
import os
from typing import Annotated, Any

import typer

from pixtral.server.settings import PREFIX, Settings, kind_of, load_settings


def serve(**given: Any) -> None:
    """Answer many people at once, through the API that OpenAI's clients speak.

    MODEL may be left out: the small model inside this package answers then. Every option may also be given by the
    environment (--max-num-seqs as PIXTRAL_MAX_NUM_SEQS) or in a TOML file (max_num_seqs = 32); the command line goes
    first, then the environment, then the file.

    Ctrl-C or SIGTERM lets running answers finish; a second one does not.
    """
    file = given.pop("config") or os.environ.get(f"{PREFIX}CONFIG")
    settings, remarks = load_settings(given, os.environ, file)
    # PyTorch, which is not loaded yet, would have its threads spin on the cores that the kernels' threads and the event
    # loop need: with 8 clients that costs a third of the throughput, and most of it on a machine that is busy otherwise
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from pixtral.server.run import run

    run(settings, remarks)


def _parameters() -> list[inspect.Parameter]:
    """The parameters of the command: the model, --config, and a flag for every other setting."""
    file = typer.Option("--config", metavar="FILE", help="A TOML file with settings.", show_default=False)
    made = [_parameter("config", str, file)]
    for field in dataclasses.fields(Settings):
        kind, about = kind_of(field), field.metadata
        if field.name == "model":
            argument = typer.Argument(metavar="MODEL", help=about["help"], show_default=False)
            made.insert(0, _parameter("model", str, argument))
            continue
        default = "" if field.default in (None, (), False) else f"  [default: {field.default}]"
        option = typer.Option(
            "--" + field.name.replace("_", "-"),
            metavar=None if kind is bool else about["metavar"],
            help=about["help"] + default,
            show_default=False,
        )
        made.append(_parameter(field.name, kind, option))
    return made


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    """A parameter that is None when not given (an empty list, where it may be given several times)."""
    annotation = Annotated[list[str] | None, option] if kind is tuple else Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


# typer reads a command's options off its signature
serve.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
serve.__annotations__ = {one.name: one.annotation for one in _parameters()}
