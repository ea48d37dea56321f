"""`pixtral inspect`: the grid and tokens of an image, or the contents of a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pixtral.assets import tiny_path
from pixtral.cli import options
from pixtral.cli.output import print_json


def inspect(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="Images (paths, URLs) or models (folders, owner/name); without any, the embedded model.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            show_default=False,
            help="Draw each image with its grid of patches: a file, or a folder for several images.",
        ),
    ] = None,
    patch_size: Annotated[int, typer.Option(metavar="PIXELS", help="Side of a patch.", min=1)] = 16,
    max_image_size: Annotated[
        int, typer.Option(metavar="PIXELS", help="Longest side of an image as the model sees it.", min=1)
    ] = 1024,
    as_json: options.Json = False,
    layout: options.LayoutName = "auto",
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
) -> None:
    """Show what becomes of images, or what a model holds.

    Of images: size, resized size, grid of patches, prompt tokens. Of a model: layout, parameters by part, number
    formats, what is missing or unexpected; only the headers of its files are read (those of the Hub are fetched first).

    A target is a MODEL if it is an existing folder or has the form owner/name, and an IMAGE otherwise. The exit code
    is 1 if an image cannot be read or a model could not be loaded.
    """
    targets = targets or [str(tiny_path())]
    models = [target for target in targets if options.looks_like_model(target)]
    images = [target for target in targets if target not in models]
    results: list[dict[str, object]] = []
    sound = True
    if images:
        from pixtral.cli.inspection import inspect_images

        facts, sound = inspect_images(images, save, patch_size, max_image_size, quiet=as_json)
        results += facts
    if models:
        from pixtral.cli.inspection import inspect_model

        for model in models:
            result, ok = inspect_model(model, layout, revision, cache_dir, local_files_only, quiet=as_json)
            results.append(result)
            sound = sound and ok
    if as_json:
        print_json(results[0] if len(targets) == len(results) == 1 else results)
    if not sound:
        raise typer.Exit(1)
