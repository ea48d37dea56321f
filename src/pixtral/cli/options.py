"""Options that several commands share, and the distinction of models from questions among the arguments."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pixtral.assistant import Assistant

Dtype = Annotated[
    str,
    typer.Option(metavar="DTYPE", help="Number format of the weights: auto (as stored), bfloat16, float16, float32."),
]
DeviceMap = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="Where the model runs: auto (a GPU if there is one), cpu, cuda, cuda:1, mps."),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DEVICE=SIZE",
        show_default=False,
        help="Memory that auto may use, such as cpu=8GiB or 0=20GiB; may be given several times.",
    ),
]
OffloadFolder = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", show_default=False, help="Leave on the disk what finds no room in memory; slow, but it runs."
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        metavar="SCHEME",
        show_default=False,
        help="Pack the decoder's weights while they are read: int4 (a quarter of the memory) or int8 (half).",
    ),
]
QuantizeVision = Annotated[
    bool, typer.Option("--quantize-vision", help="Also quantize the vision tower's and the projector's, in 8 bits.")
]
Activations = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        show_default=False,
        help="What goes into quantized layers: int8 (fast; the default) or bf16.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="INTEGER", show_default=False, help="CPU threads; as many as there are cores when left out."),
]
LayoutName = Annotated[
    str, typer.Option(metavar="LAYOUT", help="Files to read of a folder that holds both layouts: auto, hf, mistral.")
]
Revision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the Hub.", show_default=False)
]
CacheDir = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Where the Hub's files are kept.", show_default=False)
]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Never use the network.")]
MaxImageSize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        min=1,
        show_default=False,
        help="Scale images down to this longest side; fewer tokens.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", metavar="INTEGER", help="New tokens at most.", min=1)
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        min=0.0,
        show_default=False,
        help="Draw tokens, the wilder the higher; without it the likeliest one is taken.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        min=0.0,
        max=1.0,
        show_default=False,
        help="Draw among the likeliest tokens that reach this probability together.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(metavar="INTEGER", min=1, show_default=False, help="Draw among this many likeliest tokens."),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        min=0.0,
        max=1.0,
        show_default=False,
        help="Draw among tokens at least this likely, as a share of the likeliest.",
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="INTEGER", help="Makes drawing repeatable.", show_default=False)]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Text that ends the answer; may be given several times.", show_default=False),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        show_default=False,
        help="Number format of keys and values: bf16, or int8 (half the memory); the model's own when left out.",
    ),
]
PromptLookup = Annotated[
    int | None,
    typer.Option(
        metavar="INTEGER",
        min=1,
        show_default=False,
        help="Check this many tokens at once that stood in the text before: the same answer, sooner if it repeats.",
    ),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt: how to answer.", show_default=False)]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATH_START = re.compile(r"(\.{0,2}|~)[/\\]")


@dataclass(frozen=True)
class ModelChoice:
    """A model and the options of loading it."""

    model: str | None
    dtype: str = "auto"
    device_map: str = "auto"
    layout: str = "auto"
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    max_image_size: int | None = None
    kv_cache: str | None = None
    prompt_lookup: int | None = None
    quantization: str | None = None
    quantize_vision: bool = False
    activations: str | None = None
    threads: int | None = None
    max_memory: list[str] | None = None
    offload_folder: str | None = None

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.model or "the embedded model"

    def load(self) -> Assistant:
        """The model, ready to chat."""
        from pixtral.cli.output import waiting

        with waiting("starting"):  # PyTorch takes seconds the first time; the weights have a bar of their own
            from pixtral import models, processing  # noqa: F401
            from pixtral.assistant import load

            if self.model is None and self.threads is None:  # so small that more threads make it slower
                import torch

                torch.set_num_threads(1)
        layout: Any = self.layout
        return load(
            self.model,
            dtype=self.dtype,
            device_map=self.device_map,
            max_memory=memory_limits(self.max_memory),
            offload_folder=self.offload_folder,
            quantization=self.quantization,
            quantize_vision=self.quantize_vision,
            activations=self.activations,
            threads=self.threads,
            layout=layout,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
            max_image_size=self.max_image_size,
            kv_cache=self.kv_cache,
            prompt_lookup_num_tokens=self.prompt_lookup,
        )


def memory_limits(words: list[str] | None) -> dict[str | int, str | int] | None:
    """["cpu=8GiB", "0=20GiB"] as `max_memory`.

    Raises:
        typer.BadParameter: not of this form.
    """
    limits: dict[str | int, str | int] = {}
    for word in words or ():
        device, sign, size = word.partition("=")
        if not (device and sign and size):
            raise typer.BadParameter(f"--max-memory is {word!r}, expected DEVICE=SIZE, for example cpu=8GiB")
        limits[int(device) if device.isdigit() else device] = size
    return limits or None


def looks_like_model(word: str) -> bool:
    """Whether a word names a model: an existing folder, owner/name, or something written as a path to a folder."""
    if os.path.isdir(os.path.expanduser(word)):
        return True
    if os.path.exists(word) or any(letter.isspace() for letter in word):
        return False
    return bool(_HUB_ID.fullmatch(word) or _PATH_START.match(word))


def model_and_question(first: str | None, second: str | None, model: str | None) -> tuple[str | None, str | None]:
    """(model, question) of `pixtral chat`; see its help.

    Raises:
        typer.BadParameter: two arguments beside --model.
    """
    if model is not None:
        if second is not None:
            raise typer.BadParameter("found two arguments beside --model, expected only a question; put it in quotes")
        return model, first
    if second is None and first is not None and not looks_like_model(first):
        return None, first
    return first, second
