"""`pixtral quantize`: write a quantized copy of a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pixtral.cli import options
from pixtral.cli.output import print_json


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder or Hub id (owner/name).", show_default=False)],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The folder to make; it must not be there, or empty.", show_default=False),
    ],
    to: Annotated[
        str, typer.Option(metavar="SCHEME", help="int4 (a quarter of the size) or int8 (half), of the decoder.")
    ] = "int4",
    quantize_vision: options.QuantizeVision = False,
    group_size: Annotated[
        int | None,
        typer.Option(
            metavar="COLUMNS",
            show_default=False,
            help="Columns that share a scale: 32, 64 or 128; 64 when left out, 32 where that does not fit.",
        ),
    ] = None,
    lm_head_bits: Annotated[
        int, typer.Option(metavar="BITS", help="Of the output layer: 4, 8, or 16 to leave it as it is.")
    ] = 8,
    dtype: options.Dtype = "auto",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one weight file.")] = "5GB",
    threads: options.Threads = None,
    as_json: options.Json = False,
    layout: options.LayoutName = "auto",
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
) -> None:
    """Write a copy of a model with its weights in 4 or 8 bits.

    The copy holds all that the model needs: `pixtral chat OUT` maps it into memory and is ready at once. The model is
    read and written tensor by tensor, so it may be larger than the memory. OUT appears when it is complete; a run that
    fails or is killed leaves none.
    """
    from pixtral.checkpoints.layout import fetch
    from pixtral.checkpoints.placement import parse_dtype
    from pixtral.checkpoints.quantize import quantize_checkpoint
    from pixtral.checkpoints.report import inspect_checkpoint
    from pixtral.cli.inspection import print_quantization
    from pixtral.configuration import QuantizationConfig
    from pixtral.models import NETWORKS
    from pixtral.ops.runtime import use_threads
    from pixtral.processing.auto import files_of

    started = time.perf_counter()
    config = QuantizationConfig.from_name(
        to, group_size=group_size, lm_head_bits=lm_head_bits, quantize_vision=quantize_vision
    )
    if threads is not None:
        use_threads(threads)
    hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    kind: Any = layout
    files = fetch(model, kind, **hub)
    made = quantize_checkpoint(
        files,
        out,
        config,
        NETWORKS,
        dtype=parse_dtype(dtype),
        copies=files_of(model, **hub),
        max_shard_size=max_shard_size,
    )
    report = inspect_checkpoint(out, NETWORKS)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "files": list(made.files),
                "bytes_before": made.before,
                "bytes": made.after,
                "quantization": report.quantization_facts(),
                "seconds": round(seconds, 3),
            }
        )
        return
    print_quantization(report)
    typer.echo(f"\n{made.folder}: {made.after / 1e9:,.3f} GB (was {made.before / 1e9:,.3f} GB), {seconds:.1f} s")
