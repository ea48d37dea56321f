"""What becomes of a picture on its way into the model: sizes, grid, tokens, and the grid drawn on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from pixtral.cli.output import complain, note, print_table
from pixtral.cli.pictures import open_picture, shortened
from pixtral.errors import ImageError
from pixtral.images.geometry import Grid, Rounding, image_grid

if TYPE_CHECKING:
    from PIL.Image import Image

_ROUNDINGS: tuple[Rounding, ...] = ("hf", "mistral")
_COLUMNS = ("picture", "size", "resized", "grid", "tokens", "rounding")


def inspect_images(
    sources: list[str], save: Path | None, patch_size: int, longest_edge: int, *, quiet: bool
) -> tuple[list[dict[str, object]], bool]:
    """Print a table of the pictures and draw them if asked to; (the same facts, whether all could be read).

    Args:
        sources: paths or URLs.
        save: a file for one picture, a folder for several.
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
            image = open_picture(source)
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
            facts |= _facts(grids["hf"], patch_size)
        else:
            for rounding, grid in grids.items():
                rows.append(_row(name, image, grid, patch_size, rounding))
            facts["rounding"] = {rounding: _facts(grid, patch_size) for rounding, grid in grids.items()}
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
    """The picture as the model sees it, with the borders of its patches; at least 512 pixels on the longer side."""
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


def _facts(grid: Grid, patch_size: int) -> dict[str, object]:
    height, width = grid.size(patch_size)
    return {
        "resized_width": width,
        "resized_height": height,
        "rows": grid.rows,
        "cols": grid.cols,
        "tokens": grid.num_tokens,
    }


def _target(save: Path, source: str, number: int, *, several: bool) -> Path:
    """Where a drawing goes: the file named, or one in the folder named after the picture."""
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
