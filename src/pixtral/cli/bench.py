"""`pixtral bench`: speed and memory of a model on this machine, beside the machine's ceilings."""

from __future__ import annotations

from typing import Annotated

import typer

from pixtral.assets import tiny_path
from pixtral.cli import options
from pixtral.cli.output import note, print_json, print_table


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A folder or Hub id; the model inside this package without one.", show_default=False
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Instead of a MODEL: pixtral-12b, pixtral-large, mid or tiny.", show_default=False
        ),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Make the --shape with random weights.")] = False,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER", help="Make only so many layers of the decoder; times are scaled.", show_default=False
        ),
    ] = None,
    quantization: Annotated[
        str,
        typer.Option(metavar="SCHEME", help="int4, int8 or none; a MODEL may also be stored so."),
    ] = "none",
    quantize_vision: options.QuantizeVision = False,
    activations: options.Activations = None,
    kv_cache: options.KvCache = None,
    threads: options.Threads = None,
    image: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PIXELS",
            min=0,
            show_default=False,
            help="Side of the square image (512); may be given several times; 0 for text alone.",
        ),
    ] = None,
    prompt: Annotated[int, typer.Option(metavar="TOKENS", min=1, help="Length of the text prompt.")] = 1056,
    new: Annotated[int, typer.Option(metavar="TOKENS", min=1, help="New tokens that are timed.")] = 16,
    context: Annotated[
        list[int] | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            show_default=False,
            help="Tokens before the new ones (1100); may be given several times.",
        ),
    ] = None,
    memory_context: Annotated[
        int, typer.Option(metavar="TOKENS", min=1, help="Tokens in the cache when memory is looked at.")
    ] = 4096,
    compute_context: Annotated[
        bool,
        typer.Option("--compute-context", help="Read whole contexts, instead of drawing their keys and values (slow)."),
    ] = False,
    repeat: Annotated[int, typer.Option(metavar="INTEGER", min=1, help="Runs of everything; medians count.")] = 3,
    compare: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also measure: transformers.", show_default=False),
    ] = None,
    as_json: options.Json = False,
    layout: options.LayoutName = "auto",
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
) -> None:
    """Measure a model on this machine's processor.

    First what the machine can do: reading memory, products of 8-bit integers and of bfloat16. Then, through the same
    calls that programs make: seconds for an image, prompt tokens/s, seconds from an image and a question to the first
    token, new tokens/s, and memory. Each is put beside the limit that it meets first, as a share of it.

    --shape pixtral-12b --random needs no checkpoint: the speed does not depend on the values of the weights.
    """
    if shape is not None and (model is not None or not random):
        raise typer.BadParameter("--shape comes without weights: say --random with it, and no MODEL")
    if shape is None and (random or layers is not None):
        raise typer.BadParameter("--random and --layers are for a --shape; name one")
    if compare not in (None, "transformers"):
        raise typer.BadParameter(f"--compare is {compare!r}; expected transformers")
    with_quantization = None if quantization == "none" else quantization
    from pixtral import __version__
    from pixtral.bench import report as reports
    from pixtral.bench.measured_model import loaded_model, model_of_shape
    from pixtral.bench.settings import Settings
    from pixtral.ops.runtime import use_threads
    from pixtral.quantization import QuantizationArguments

    if threads is not None:
        use_threads(threads)
    settings = Settings(
        images=tuple(side for side in image or [512] if side),
        prompt=prompt,
        new=new,
        contexts=tuple(context or [1100]),
        memory_context=memory_context,
        compute_context=compute_context,
        repeat=repeat,
        kv_cache=kv_cache,
    )
    asked = QuantizationArguments(with_quantization, quantize_vision, activations)
    if shape is not None:
        note(f"making {shape} with random weights")
        measured = model_of_shape(shape, asked, settings, layers)
    else:
        hub = {"layout": layout, "revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
        measured = loaded_model(model or str(tiny_path()), asked, settings, **hub)
    report = reports.measure(measured, settings, note)
    report["machine"]["pixtral"] = __version__  # also where it runs from a checkout that is not installed
    if compare is not None:
        from pixtral.bench.peer import measure_transformers

        report["peer"] = measure_transformers(measured, settings, note)
    if as_json:
        print_json(report)
        return
    for line in reports.summary(report):
        typer.echo(line)
    typer.echo()
    print_table("", reports.COLUMNS, reports.rows(report), numbers=(1, 2, 3, 4, 5))
    if compare is not None:
        peer = report["peer"]
        typer.echo()
        typer.echo(reports.peer_summary(peer))
        columns = ("", "pixtral", peer["name"], "faster")
        print_table("", columns, reports.compared(report["figures"], peer["figures"]), numbers=(1, 2, 3))
