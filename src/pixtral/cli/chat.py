"""`pixtral chat`: one question, or a conversation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pixtral.cli import options
from pixtral.cli.output import cost, note, open_image, print_json
from pixtral.errors import PromptError

if TYPE_CHECKING:
    from pixtral.assistant.options import ChatOptions


def chat(
    first: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A folder or Hub id (owner/name).", show_default=False)
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What you want to know.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="The MODEL; a single argument is the QUESTION then.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="IMAGE",
            show_default=False,
            help="An image: path or URL; may be given several times.",
        ),
    ] = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    kv_cache: options.KvCache = None,
    prompt_lookup: options.PromptLookup = None,
    as_json: options.Json = False,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = "auto",
    max_memory: options.MaxMemory = None,
    offload_folder: options.OffloadFolder = None,
    quantization: options.Quantization = None,
    quantize_vision: options.QuantizeVision = False,
    activations: options.Activations = None,
    threads: options.Threads = None,
    layout: options.LayoutName = "auto",
    max_image_size: options.MaxImageSize = None,
    revision: options.Revision = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
) -> None:
    """Ask a question about images, or talk about them.

    MODEL may be left out: the small model inside this package answers then (it knows coloured shapes). A single
    argument is the MODEL if it is an existing folder, has the form owner/name, or is written as a path (./x, /x, ~/x);
    otherwise it is the QUESTION. --model leaves no doubt. The QUESTION "-" is read from standard input.

    Without a QUESTION a conversation begins: /image PATH shows an image, /reset forgets, /help says more, Ctrl-C stops
    an answer, Ctrl-D ends. When standard input is not a terminal, each of its lines is a question.
    """
    name, question = options.model_and_question(first, second, model)
    if question is None and as_json:
        raise typer.BadParameter("--json needs a question")
    if question == "-":
        question = sys.stdin.read().strip()
        if not question:
            raise PromptError("standard input is empty; expected the question there, since it was given as '-'")
    if question is not None and not question.strip():
        raise PromptError("the question is empty; write what you want to know")
    choice = options.ModelChoice(
        name,
        dtype,
        device_map,
        layout,
        revision,
        cache_dir,
        local_files_only,
        max_image_size,
        kv_cache=kv_cache,
        prompt_lookup=prompt_lookup,
        quantization=quantization,
        quantize_vision=quantize_vision,
        activations=activations,
        threads=threads,
        max_memory=max_memory,
        offload_folder=offload_folder,
    )
    how: ChatOptions = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "stop": stop,
    }
    from pixtral.cli.session import Session, show

    images = [open_image(source) for source in image or []]
    assistant = choice.load()
    if question is None:
        raise typer.Exit(Session(assistant, system, how, images, choice.name).run())
    if as_json:
        answer = assistant.chat(question, images, system=system, **how)
        print_json({"model": assistant.model.name_or_path, **answer.to_dict()})
        return
    answer = show(assistant.chat(question, images, stream=True, system=system, **how))
    note(cost(answer))
