"""The result of an estimate: values, JSON and text."""

from __future__ import annotations

import dataclasses
from typing import Any

from pixtral.checkpoints.memory import gigabytes


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """One image after preprocessing.

    Attributes:
        name: as it was given; empty for a size.
        width, height: of the image, upright, in pixels.
        resized_width, resized_height: after resizing, multiples of the patch.
        rows, cols: of the grid of patches.
        tokens: of the prompt.
    """

    name: str
    width: int
    height: int
    resized_width: int
    resized_height: int
    rows: int
    cols: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class PartSize:
    """One part of the model.

    Attributes:
        name: "vision tower", "projector", "embeddings", "decoder" or "output layer".
        parameters: how many, tied ones once.
        format: of its weights: "bfloat16", "4 bits, groups of 64, and bfloat16".
        nbytes: of all of it.
        resident: of that, in memory while answering: not the embeddings whose rows are read from their file.
    """

    name: str
    parameters: int
    format: str
    nbytes: int
    resident: int


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a model while it answers, in bytes unless named otherwise; `str()` of it is a text for people.

    Attributes:
        model: its name, folder or shape.
        dtype: of what is not quantized.
        quantization: "int4", "int8", "nf4", "fp4", "llm.int8", or None.
        kv_cache: number format of keys and values.
        weights: by part.
        images: after preprocessing.
        context: tokens, prompt and answer together, that the memory is estimated for.
        context_length: tokens that the model can hold.
        batch: conversations at a time, each of `context` tokens and with all the images.
        cache: keys and values.
        image_work: activations of tower and projector.
        prompt_work: activations of the decoder while a prompt is read.
        runtime: Python, PyTorch and the tokenizer.
        loading: held beside the weights while they are read, at most.
        disk: size of the weight files; with a quantization that is made while loading, of those read.
        saved: size of the weight files that `save_pretrained` or `pixtral quantize` would write.
        available: free memory of this machine; None when unknown.
    """

    model: str
    dtype: str
    quantization: str | None
    kv_cache: str
    weights: tuple[PartSize, ...]
    images: tuple[ImageSize, ...]
    context: int
    context_length: int
    batch: int
    cache: int
    image_work: int
    prompt_work: int
    runtime: int
    loading: int
    disk: int
    saved: int
    available: int | None

    @property
    def image_tokens(self) -> int:
        """Prompt tokens that all images take together."""
        return sum(image.tokens for image in self.images)

    @property
    def text_room(self) -> int:
        """Tokens that the images leave in `context` for text and answer; negative when they do not fit."""
        return self.context - self.image_tokens

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return sum(part.nbytes for part in self.weights)

    @property
    def resident_weights(self) -> int:
        """Weights that are in memory while answering."""
        return sum(part.resident for part in self.weights)

    @property
    def work(self) -> int:
        """Work space. The memory of images is free when the prompt is read, but fragmented: the process keeps about
        half of it (measured)."""
        less, more = sorted((self.image_work, self.prompt_work))
        return more + less // 2

    @property
    def total(self) -> int:
        """Memory of the process while answering, at most."""
        return self.runtime + self.resident_weights + self.cache + self.work

    @property
    def loading_peak(self) -> int:
        """Memory of the process while loading, at most."""
        return self.runtime + self.resident_weights + self.loading

    @property
    def fits(self) -> bool | None:
        """Whether the free memory is enough; None when unknown."""
        return None if self.available is None else max(self.total, self.loading_peak) - self.runtime <= self.available

    def to_dict(self) -> dict[str, Any]:
        """The attributes and properties, for JSON."""
        names = (
            "image_tokens",
            "text_room",
            "weight_bytes",
            "resident_weights",
            "work",
            "total",
            "loading_peak",
            "fits",
        )
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        lines = [self.title()]
        lines += [
            f"  {image.name or 'image'}: {image.width} x {image.height} -> {image.resized_width} x "
            f"{image.resized_height}, {image.rows} rows of {image.cols}: {image.tokens:,} tokens"
            for image in self.images
        ]
        if self.images:
            lines.append(f"  {self.image_tokens:,} image tokens leave room for {self.text_room:,} of text and answer")
        lines += [f"  {name:<14}{gigabytes(size):>10}  {remark}".rstrip() for name, size, remark in self.rows()]
        return "\n".join([*lines, self.verdict()])

    def title(self) -> str:
        """Model, formats and context, in a line."""
        formats = f"{self.quantization} and {self.dtype}" if self.quantization else self.dtype
        cache = "" if self.kv_cache == self.dtype else f", cache in {self.kv_cache}"
        return f"{self.model}: {formats}{cache}, context of {self.context:,} tokens{self._times()}"

    def rows(self) -> list[tuple[str, int, str]]:
        """(part, bytes in memory, remark), the sum last."""
        table = []
        for part in self.weights:
            file = "" if part.resident else f"; {gigabytes(part.nbytes)} stay in the file, of which rows are read"
            table.append((part.name, part.resident, part.format + file))
        table.append(("cache", self.cache, f"keys and values of {self.context:,} tokens{self._times()}"))
        images = f"images {gigabytes(self.image_work)}, " if self.images else ""
        table.append(("work space", self.work, f"{images}prompt {gigabytes(self.prompt_work)}"))
        table.append(("runtime", self.runtime, "Python, PyTorch, tokenizer"))
        table.append(("all", self.total, "while answering"))
        if self.loading_peak > self.total:
            table.append(("", self.loading_peak, "while loading"))
        return table

    def verdict(self) -> str:
        """Size on the disk, and whether the model fits into memory, in a line."""
        saved = "" if abs(self.saved - self.disk) < self.disk / 100 else f" ({gigabytes(self.saved)} when saved again)"
        disk = f"on the disk {gigabytes(self.disk)}{saved}"
        if self.available is None:
            return disk
        fits = "fits" if self.fits else "does not fit"
        return f"{disk}; in memory it {fits} here, where {gigabytes(self.available)} are free"

    def _times(self) -> str:
        return f" x {self.batch}" if self.batch > 1 else ""
