"""Tokenizers and processors from the files of a folder: Hugging Face's layout, or Mistral's through mistral-common."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pixtral.errors import CheckpointError, ImageError, PromptError, refuse_unknown
from pixtral.hub import listing, read_json, resolve, saving
from pixtral.images.base import BaseImageProcessor
from pixtral.images.processors import PixtralImageProcessor, PixtralImageProcessorFast
from pixtral.processing.expansion import IMAGE_OPTIONS
from pixtral.text import huggingface, mistral
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer
from pixtral.text.mistral_images import native_processor
from pixtral.text.templates import find_template
from pixtral.text.tokenizer_files import FILES, NoTokenizer, has_tokenizer_file

Layout = Literal["hf", "mistral"]
MODES = ("auto", "hf", "mistral")
Self = TypeVar("Self", bound="ProcessorFiles")

HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
CONFIG = ("patch_size", "spatial_merge_size", "image_token", "image_break_token", "image_end_token")
PATTERNS = (*FILES, "preprocessor_config.json", "params.json", "tekken.json", "*.model", "*.model.v*")


def choose_layout(folder: Path, tokenizer_mode: str = "auto") -> Layout:
    """ "hf" for tokenizer.json, "mistral" for tekken.json or *.model.v*.

    With both, "auto" takes tokenizer.json, unless it has no chat template, without which it cannot hold a conversation.

    Raises:
        NoTokenizer: the folder has none, or not the one asked for; the message lists what is there.
        PromptError: an unknown mode.
    """
    if tokenizer_mode not in MODES:
        raise PromptError(f"tokenizer_mode is {tokenizer_mode!r}; expected one of {', '.join(map(repr, MODES))}")
    hf, mistral = (folder / "tokenizer.json").is_file(), has_tokenizer_file(folder)
    if tokenizer_mode == "hf" or (hf and tokenizer_mode == "auto" and not (mistral and find_template(folder) is None)):
        found: Layout | None = "hf" if hf else None
    else:
        found = "mistral" if mistral else None
    if found is None:
        wanted = {"hf": "tokenizer.json", "mistral": "tekken.json or *.model.v*"}
        missing = wanted.get(tokenizer_mode, "tokenizer.json, tekken.json or *.model.v*")
        raise NoTokenizer(
            f"{folder} has no tokenizer ({missing}); it holds: {listing(folder)}. "
            "Copy the model's tokenizer files there"
        )
    return found


class AutoTokenizer:
    """Chooses the tokenizer by the files of a folder or Hub id."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is not made by itself; use AutoTokenizer.from_pretrained(folder_or_hub_id)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        tokenizer_mode: str = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> HuggingFaceTokenizer | MistralCommonTokenizer:
        """A HuggingFaceTokenizer or a MistralCommonTokenizer.

        Args:
            tokenizer_mode: "auto", or "hf" or "mistral" to insist on one where a folder has both.
            options: for the tokenizer's own from_pretrained (padding_side, model_max_length, ...).

        Raises:
            NoTokenizer: the folder has no tokenizer; the message lists what is there.
        """
        options = {key: value for key, value in options.items() if key not in ("trust_remote_code", "use_fast")}
        folder = resolve(
            pretrained_model_name_or_path,
            patterns=PATTERNS,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        if choose_layout(folder, tokenizer_mode) == "hf":
            return HuggingFaceTokenizer.from_pretrained(folder, **options)
        return MistralCommonTokenizer.from_pretrained(folder, **options)


def files_of(path_or_id: str | os.PathLike[str], **hub: Any) -> list[Path]:
    """The files of a model, of those that a tokenizer, a processor or generation may need; not its config.json.

    Args:
        path_or_id: a folder or Hub id.
        hub: arguments of `hub.resolve`.
    """
    patterns = (*PATTERNS, "generation_config.json")
    folder = resolve(path_or_id, patterns=patterns, **hub)
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != "config.json")


@dataclass(frozen=True)
class Parts:
    """A processor's constructor arguments."""

    image_processor: BaseImageProcessor
    tokenizer: HuggingFaceTokenizer | MistralCommonTokenizer
    settings: dict[str, Any]


def load_parts(folder: Path, *, use_fast: bool, tokenizer_mode: str, options: dict[str, Any]) -> Parts:
    """What the files of a folder say; `options` of the processor, tokenizer and image processor go before them."""
    options = dict(options)
    own = {key: options.pop(key) for key in (*CONFIG, "chat_template") if key in options}
    image_options = {key: options.pop(key) for key in IMAGE_OPTIONS if key in options}
    options.pop("trust_remote_code", None)
    layout = choose_layout(folder, tokenizer_mode)
    known = huggingface.OPTIONS if layout == "hf" else mistral.OPTIONS
    takes = (*known, *CONFIG, "chat_template", *IMAGE_OPTIONS, "use_fast", "tokenizer_mode", *HUB)
    refuse_unknown((name for name in options if name not in known), "the processor's from_pretrained()", takes)
    config = read_json(folder / "processor_config.json", error=CheckpointError, missing_ok=True)
    settings = {name: config[name] for name in CONFIG if config.get(name) is not None}
    if layout == "hf":
        tokenizer = HuggingFaceTokenizer.from_pretrained(folder, **options)
        kind = PixtralImageProcessorFast if use_fast else PixtralImageProcessor
        return Parts(kind.from_pretrained(folder, **image_options), tokenizer, {**settings, **own})
    native = MistralCommonTokenizer.from_pretrained(folder, **options)
    native.image_limits = image_options.get("limits")
    image_processor = default_image_processor(native, **image_options)
    encoder = native.tokenizer.instruct_tokenizer.image_encoder
    assert encoder is not None
    settings["patch_size"] = encoder.image_config.image_patch_size
    settings["spatial_merge_size"] = encoder.image_config.spatial_merge_size
    return Parts(image_processor, native, {**settings, **own})


def default_image_processor(
    tokenizer: HuggingFaceTokenizer | MistralCommonTokenizer, **options: Any
) -> BaseImageProcessor:
    """The image processor that goes with a tokenizer."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return PixtralImageProcessorFast(**options)
    encoder = tokenizer.tokenizer.instruct_tokenizer.image_encoder
    if encoder is None:
        raise ImageError(f"{tokenizer!r} knows no images; a processor needs a tokenizer of a model with images")
    processor: BaseImageProcessor = native_processor(encoder.image_config, **options)
    return processor


class ProcessorFiles:
    """Mixed into PixtralProcessor: reading and writing its files."""

    tokenizer: HuggingFaceTokenizer | MistralCommonTokenizer
    image_processor: BaseImageProcessor
    chat_template: str | None
    layout: str

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, **settings: Any
    ) -> None:  # PixtralProcessor's own is the real one
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: object) -> list[str]:
        """Write the files that `from_pretrained` reads; returns their paths.

        With a MistralCommonTokenizer that is its one file, which holds the image settings too, and the processor's.
        """
        refuse_unknown((key for key, value in kwargs.items() if value), "save_pretrained()", ("save_directory",))
        paths = list(self.tokenizer.save_pretrained(save_directory))
        paths += self.image_processor.save_pretrained(save_directory)
        config = {"processor_class": "PixtralProcessor", **{name: getattr(self, name) for name in CONFIG}}
        with saving(save_directory) as folder:
            if self.layout == "hf" and self.chat_template is not None:
                (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
                paths.append(str(folder / "chat_template.jinja"))
            (folder / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return list(dict.fromkeys([*paths, str(folder / "processor_config.json")]))

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        use_fast: bool = True,
        tokenizer_mode: str = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> Self:
        """The processor of a folder or Hub id, in the Hugging Face layout or Mistral's.

        Args:
            use_fast: the torch image processor; False the PIL one. Mistral's layout has its own.
            tokenizer_mode: "auto", or "hf" or "mistral" to insist on one where a folder has both.
            options: arguments of the constructor, of the tokenizer (padding_side, model_max_length, ...) and of the
                image processor (size, limits, ...), in place of the files'.

        Raises:
            NoTokenizer: the folder has no tokenizer; the message lists what is there.
            CheckpointError: a file is damaged, or the Hub cannot be reached.
        """
        folder = resolve(
            pretrained_model_name_or_path,
            patterns=PATTERNS,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        parts = load_parts(folder, use_fast=use_fast, tokenizer_mode=tokenizer_mode, options=options)
        return cls(parts.image_processor, parts.tokenizer, **parts.settings)
