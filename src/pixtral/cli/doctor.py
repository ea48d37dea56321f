"""`pixtral doctor`: checks of the installation and the machine."""

from __future__ import annotations

import typer

from pixtral.cli import options
from pixtral.cli.output import console, print_json


def doctor(as_json: options.Json = False) -> None:
    """Show what this installation has to work with.

    Versions, the processor and which kernels follow from it, threads, memory (a container's limits included), devices,
    optional packages, the Hub's cache, and whether the embedded model is complete; with advice where something is
    missing or slow. The exit code is 1 if something is broken that pixtral cannot work without.
    """
    from pixtral.cli.doctor_checks import checks, to_dict

    found = []
    out = console()
    for check in checks():
        found.append(check)
        if as_json:
            continue
        mark, colour = ("x", "red") if check.problem else ("!", "yellow") if check.advice else ("+", "green")
        out.print(f"[bold {colour}]{mark}[/] {check.name:<16}", end="")
        out.print(check.found, markup=False, soft_wrap=True)
        if check.advice:
            out.print(f"  {'':<16}{check.advice}", style=colour, markup=False, soft_wrap=True)
    result = to_dict(found)
    if as_json:
        print_json(result)
    if not result["ok"]:
        raise typer.Exit(1)
