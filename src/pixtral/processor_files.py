"""Loading what a processor is made of, from the Hugging Face layout or Mistral's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixtral.auto import choose_layout
from pixtral.errors import ImageError
from pixtral.images.base import BaseImageProcessor
from pixtral.images.processors import PixtralImageProcessor, PixtralImageProcessorFast
from pixtral.processor_options import IMAGE_OPTIONS
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.huggingface_files import read_json
from pixtral.text.mistral import MistralCommonTokenizer
from pixtral.text.mistral_images import native_processor

CONFIG = ("patch_size", "spatial_merge_size", "image_token", "image_break_token", "image_end_token")


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
    config = read_json(folder / "processor_config.json")
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
