"""`pixtral estimate`: the memory and tokens that a model needs, before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixtral.cli import options
from pixtral.cli.output import open_image, print_json, print_table, shortened, waiting

if TYPE_CHECKING:
    from pixtral.sizing import MemoryEstimate


def estimate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder (a configuration in it is enough) or Hub id; without any, the embedded model.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead of a MODEL: pixtral-12b, pixtral-large.", show_default=False),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="IMAGE",
            show_default=False,
            help="An image: path, URL, or WIDTHxHEIGHT in pixels; may be given several times.",
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            show_default=False,
            help="Weights in fewer bits: int4, int8; nf4, fp4, llm.int8 as bitsandbytes makes them.",
        ),
    ] = None,
    quantize_vision: options.QuantizeVision = False,
    kv_cache: options.KvCache = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            min=1,
            show_default=False,
            help="Tokens of prompt and answer together; 4096 when left out, or what the images need.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="INTEGER", min=1, help="Conversations at a time.")] = 1,
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    layout: options.LayoutName = "auto",
    max_image_size: options.MaxImageSize = None,
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
) -> None:
    """Say what a model will take: tokens of images, memory by part, room on the disk.

    Nothing is loaded: the configuration and the headers of the weights say it all. Of a Hub id only small files are
    fetched. The exit code is 0 whether the model fits into this machine's memory or not.
    """
    sizes = [_size(source) for source in image or ()]
    with waiting("counting"):
        from pixtral.sizing import estimate as count

        chosen: Any = layout
        found = count(
            model,
            shape=shape,
            images=sizes,
            quantization=quantization,
            quantize_vision=quantize_vision,
            kv_cache=kv_cache,
            context=context,
            batch=batch,
            dtype=dtype,
            max_image_size=max_image_size,
            layout=chosen,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    names = [shortened(source) for source in image or ()]
    named = (dataclasses.replace(one, name=name) for one, name in zip(found.images, names, strict=True))
    found = dataclasses.replace(found, images=tuple(named))
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _size(source: str) -> tuple[int, int]:
    """(width, height) of an image, or as given in the form WIDTHxHEIGHT."""
    written = re.fullmatch(r"(\d+)x(\d+)", source)
    if written and not os.path.exists(source):
        width, height = int(written[1]), int(written[2])
        if not (width and height):
            raise typer.BadParameter(f"--image is {source!r}; an image has at least 1x1 pixels")
        return width, height
    return open_image(source).size


def _print(found: MemoryEstimate) -> None:
    from pixtral.checkpoints.memory import gigabytes

    typer.echo(found.title())
    if found.images:
        rows = [
            (
                one.name,
                f"{one.width} x {one.height}",
                f"{one.resized_width} x {one.resized_height}",
                f"{one.rows} rows x {one.cols}",
                f"{one.tokens:,}",
            )
            for one in found.images
        ]
        typer.echo()
        print_table("", ("image", "size", "resized", "grid", "tokens"), rows, numbers=(1, 2, 3, 4))
        typer.echo(f"{found.image_tokens:,} image tokens leave room for {found.text_room:,} of text and answer")
    typer.echo()
    table = [(name, gigabytes(size), remark) for name, size, remark in found.rows()]
    print_table("", ("part", "memory", ""), table, numbers=(1,))
    typer.echo(found.verdict())
