"""What a model's files hold and whether they can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from pixtral.checkpoints.report import CheckpointReport, inspect_checkpoint
from pixtral.cli.output import console, print_table
from pixtral.errors import PromptError
from pixtral.hub import resolve
from pixtral.processing.auto import PATTERNS, choose_layout

_SHOWN = 20


def inspect_model(
    model: str, layout: Any, revision: str | None, cache_dir: str | None, local_files_only: bool, *, quiet: bool
) -> tuple[dict[str, object], bool]:
    """Print what is known of a model; (the same facts, whether it can be loaded).

    Raises:
        CheckpointError: there is no such folder or model at all.
    """
    report = inspect_checkpoint(
        model, layout=layout, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    folder = resolve(
        model, patterns=PATTERNS, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    tokenizer = _tokenizer(folder)
    if not quiet:
        _print(report, tokenizer)
    return _facts(report, tokenizer), report.ok


def _tokenizer(folder: Path) -> str | None:
    """Which tokenizer the folder has: "hf", "mistral" or None."""
    try:
        return choose_layout(folder)
    except PromptError:
        return None


def _facts(report: CheckpointReport, tokenizer: str | None) -> dict[str, object]:
    return {
        "folder": str(report.folder),
        "layout": report.layout,
        "also": report.also,
        "naming": report.naming,
        "files": [file.name for file in report.files],
        "bytes": report.nbytes,
        "total_parameters": report.total,
        "parameters": report.parameters,
        "dtypes": report.dtypes,
        "quantization": report.quantization_facts(),
        "config": report.summary(),
        "tokenizer": tokenizer,
        "missing": list(report.missing),
        "unexpected": list(report.unexpected),
        "mismatched": [list(one) for one in report.mismatched],
        "problems": list(report.problems),
        "ok": report.ok,
    }


def _print(report: CheckpointReport, tokenizer: str | None) -> None:
    about = [("folder", str(report.folder))]
    if report.layout:
        also = f", not read: {report.also}" if report.also else ""
        about.append(("layout", f"{report.layout}{also}"))
        size = f" ({report.nbytes / 1e6:,.1f} MB)" if report.nbytes else ""  # unknown when the headers cannot be read
        about.append(("files", _first([file.name for file in report.files], 4) + size))
    about += [(name, str(value)) for name, value in report.summary().items()]
    about.append(("tokenizer", tokenizer or "none: it cannot chat"))
    if report.dtypes:
        about.append(("stored as", "; ".join(report.dtypes)))
    width = max(len(name) for name, _ in about) + 2
    out = console()
    for name, value in about:
        out.print(f"{name:<{width}}{value}", markup=False, soft_wrap=True)
    if report.parameters:
        rows = [(part, f"{count:,}", f"{count / report.total:.1%}") for part, count in report.parameters.items()]
        typer.echo()
        print_table("", ("part", "parameters", ""), [*rows, ("all", f"{report.total:,}", "")], numbers=(1, 2))
    if report.quantization:
        typer.echo()
        print_quantization(report)
    _listing("missing", report.missing)
    _listing("unexpected", report.unexpected)
    _listing(
        "of another shape", tuple(f"{name}: found {found}, expected {want}" for name, found, want in report.mismatched)
    )
    typer.echo()
    for problem in report.problems:
        out.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)
    if report.ok:
        out.print("[bold green]ok:[/] it can be loaded")


def print_quantization(report: CheckpointReport) -> None:
    """What is quantized, how, and what that takes."""
    rows = [
        (one.part, one.format, f"{one.layers}", f"{one.nbytes / 1e6:,.1f}", f"{one.bits:.2f}")
        for one in report.quantization
    ]
    print_table("", ("quantized part", "format", "layers", "MB", "bits a weight"), rows, numbers=(2, 3, 4))


def _listing(title: str, names: tuple[str, ...]) -> None:
    if not names:
        return
    typer.echo(f"\n{title} ({len(names)}):")
    for name in names[:_SHOWN]:
        typer.echo(f"  {name}")
    if len(names) > _SHOWN:
        typer.echo(f"  and {len(names) - _SHOWN} more")


def _first(names: list[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
