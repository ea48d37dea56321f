"""What a processor's call takes: which keywords are the text's and which the images', and images sorted by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixtral.errors import refuse_unknown
from pixtral.images.inputs import flatten_images
from pixtral.images.options import DEFAULTS

TEXT_OPTIONS = (
    "add_special_tokens", "padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side",
    "return_attention_mask", "return_mm_token_type_ids", "return_tensors", "verbose",
)  # fmt: skip
IMAGE_OPTIONS = (*(name for name in DEFAULTS if name not in ("patch_size", "return_tensors")), "limits")
GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")


KNOWN = (*TEXT_OPTIONS, *IMAGE_OPTIONS)


def split_options(kwargs: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of the text, options of the images); return_tensors, "pt" unless given, is among the first.

    Raises:
        UnknownArgument: a keyword that nobody would read.
    """
    flat = {key: value for key, value in kwargs.items() if key not in GROUPS}
    for group in GROUPS:
        flat.update(kwargs.get(group) or {})
    refuse_unknown((key for key in flat if key not in KNOWN), where, (*KNOWN, "images", "text"))
    flat.setdefault("return_tensors", "pt")
    return (
        {key: value for key, value in flat.items() if key in TEXT_OPTIONS},
        {key: value for key, value in flat.items() if key in IMAGE_OPTIONS},
    )


def flatten_per_prompt(images: Any) -> tuple[list[Any], list[int] | None]:
    """The images in one list, and how many belong to each prompt where they came in lists."""
    if images is None or (isinstance(images, (list, tuple)) and not any(_non_empty(item) for item in images)):
        return [], None
    flat = flatten_images(images)
    if isinstance(images, (list, tuple)) and isinstance(images[0], (list, tuple)):
        return list(flat), [len(flatten_images(item)) if item else 0 for item in images]
    return list(flat), None


def _non_empty(item: object) -> bool:
    return not (isinstance(item, (list, tuple)) and len(item) == 0)
