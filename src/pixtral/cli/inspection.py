"""The findings of `pixtral inspect`: sizes, grid and tokens of an image, or the contents of a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from pixtral.checkpoints.report import CheckpointReport, inspect_checkpoint
from pixtral.cli.output import complain, console, note, open_image, print_table, shortened
from pixtral.errors import ImageError, PromptError
from pixtral.hub import resolve
from pixtral.images.geometry import Grid, Rounding, image_grid
from pixtral.models import NETWORKS
from pixtral.processing.auto import PATTERNS, choose_layout

if TYPE_CHECKING:
    from PIL.Image import Image
_ROUNDINGS: tuple[Rounding, ...] = ("hf", "mistral")
_COLUMNS = ("image", "size", "resized", "grid", "tokens", "rounding")
_SHOWN = 20  # names of a list of tensors


def inspect_images(
    sources: list[str], save: Path | None, patch_size: int, longest_edge: int, *, quiet: bool
) -> tuple[list[dict[str, object]], bool]:
    """Print a table of the images and draw their grids; (the same facts, whether all could be read).

    Args:
        sources: paths or URLs.
        save: a file for one image, a folder for several.
        patch_size, longest_edge: in pixels.
        quiet: print nothing.

    Raises:
        ImageError: a drawing cannot be written.
    """
    rows: list[tuple[str, ...]] = []
    results: list[dict[str, object]] = []
    for number, source in enumerate(sources):
        name = shortened(source)
        try:
            image = open_image(source)
        except ImageError as error:
            complain(error)
            continue
        grids = {
            rounding: image_grid(
                image.width, image.height, patch_size=patch_size, longest_edge=longest_edge, rounding=rounding
            )
            for rounding in _ROUNDINGS
        }
        facts: dict[str, object] = {"image": name, "width": image.width, "height": image.height}
        if grids["hf"] == grids["mistral"]:
            rows.append(_row(name, image, grids["hf"], patch_size, "either"))
            facts |= _image_facts(grids["hf"], patch_size)
        else:
            for rounding, grid in grids.items():
                rows.append(_row(name, image, grid, patch_size, rounding))
            facts["rounding"] = {rounding: _image_facts(grid, patch_size) for rounding, grid in grids.items()}
        if save is not None:
            target = _target(save, source, number, several=len(sources) > 1)
            _write(draw_grid(image, grids["hf"], patch_size), target)
            facts["saved"] = str(target)
            note(f"drawn to {target}")
        results.append(facts)
    if rows and not quiet:
        print_table("", _COLUMNS, rows, numbers=(1, 2, 3, 4))
        if any("rounding" in facts for facts in results):
            typer.echo("hf: Transformers rounds a scaled side down; mistral: mistral-common rounds it to the nearest.")
    return results, len(results) == len(sources)


def draw_grid(image: Image, grid: Grid, patch_size: int) -> Image:
    """The image as the model sees it, with the borders of its patches; at least 512 pixels on the longer side."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    height, width = grid.size(patch_size)
    zoom = max(1, -(-512 // max(height, width)))
    seen = image.resize((width, height), Pillow.Resampling.BICUBIC)
    canvas = seen.resize((width * zoom, height * zoom), Pillow.Resampling.NEAREST).convert("RGBA")
    lines = Pillow.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(lines)
    step = patch_size * zoom
    for x in range(step, canvas.width, step):
        draw.line(((x, 0), (x, canvas.height)), fill=(255, 255, 255, 150))
        draw.line(((x - 1, 0), (x - 1, canvas.height)), fill=(0, 0, 0, 150))
    for y in range(step, canvas.height, step):
        draw.line(((0, y), (canvas.width, y)), fill=(255, 255, 255, 150))
        draw.line(((0, y - 1), (canvas.width, y - 1)), fill=(0, 0, 0, 150))
    return Pillow.alpha_composite(canvas, lines).convert("RGB")


def _row(name: str, image: Image, grid: Grid, patch_size: int, rounding: str) -> tuple[str, ...]:
    height, width = grid.size(patch_size)
    return (
        name,
        f"{image.width} x {image.height}",
        f"{width} x {height}",
        f"{grid.rows} rows x {grid.cols}",
        f"{grid.num_tokens:,}",
        rounding,
    )


def _image_facts(grid: Grid, patch_size: int) -> dict[str, object]:
    height, width = grid.size(patch_size)
    return {
        "resized_width": width,
        "resized_height": height,
        "rows": grid.rows,
        "cols": grid.cols,
        "tokens": grid.num_tokens,
    }


def _target(save: Path, source: str, number: int, *, several: bool) -> Path:
    """Where a drawing goes: the file named, or one in the folder named after the image."""
    if not several and not save.is_dir():
        return save
    stem = Path(urlsplit(source).path).stem if len(source) <= 1024 else ""
    return save / (f"{number + 1:02d}-{stem or 'image'}.png" if several else f"{stem or 'image'}.png")


def _write(image: Image, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot write {target}: {error}; name a file that ends with .png or .jpg") from error


def inspect_model(
    model: str, layout: Any, revision: str | None, cache_dir: str | None, local_files_only: bool, *, quiet: bool
) -> tuple[dict[str, object], bool]:
    """Print a report on a model; (the same facts, whether it can be loaded).

    Raises:
        CheckpointError: there is no such folder or model at all.
    """
    report = inspect_checkpoint(
        model, NETWORKS, layout=layout, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    folder = resolve(
        model, patterns=PATTERNS, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    tokenizer = _tokenizer(folder)
    if not quiet:
        _print(report, tokenizer)
    return _model_facts(report, tokenizer), report.ok


def _tokenizer(folder: Path) -> str | None:
    """The layout of the folder's tokenizer: "hf", "mistral" or None."""
    try:
        return choose_layout(folder)
    except PromptError:
        return None


def _model_facts(report: CheckpointReport, tokenizer: str | None) -> dict[str, object]:
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
    """Print a table of the quantized parts: formats, layers, sizes."""
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
