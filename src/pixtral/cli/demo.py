"""`pixtral demo`: the embedded model answers questions about a packaged image."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pixtral.cli import options
from pixtral.cli.output import console, cost, half_blocks, open_image, print_json

QUESTIONS = ("What is in the picture?", "What colour is the star?", "How many shapes are there?")


def demo(
    image: Annotated[
        str | None,
        typer.Option("--image", "-i", metavar="IMAGE", help="Another image: path or URL.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Ask the small model inside this package about a packaged image."""
    from pixtral.assets import demo_image_path
    from pixtral.cli.session import show

    source = image or demo_image_path()
    opened = open_image(source)
    out = console()
    if not as_json:
        out.print(f"{source} · {opened.width} x {opened.height} pixels", markup=False, soft_wrap=True)
        if out.is_terminal and out.color_system:
            out.print(half_blocks(opened))
    assistant = options.ModelChoice(None).load()
    answers = []
    for question in QUESTIONS:
        stream = assistant.chat(question, opened, stream=True, max_new_tokens=64)
        if as_json:
            answers.append({"question": question, **stream.answer.to_dict()})
            continue
        out.print(f"\n[bold cyan]>[/] [bold]{question}[/]")
        answer = show(stream)
        out.print(f"[dim]{cost(answer)}[/]", soft_wrap=True)
    if as_json:
        print_json({"image": str(source), "answers": answers})
        return
    model = assistant.model
    out.print(
        f"\nThe embedded model has {model.num_parameters() / 1e6:.1f} million parameters ({str(model.dtype)[6:]}) and "
        f"was loaded in {assistant.load_seconds:.1f} s on {model.device}.\n"
        "Next: pixtral chat -i YOUR.png, or pixtral chat mistralai/Pixtral-12B-2409 -i YOUR.png",
        soft_wrap=True,
    )
    sys.stdout.flush()
