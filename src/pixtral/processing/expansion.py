"""Arguments of a processor's call, image tokens expanded to grids, and truncation that keeps images whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixtral.errors import PromptError, refuse_unknown
from pixtral.images.geometry import Grid, expand
from pixtral.images.options import DEFAULTS
from pixtral.images.source import flatten_images

TEXT_OPTIONS = (
    "add_special_tokens",
    "padding",
    "truncation",
    "max_length",
    "pad_to_multiple_of",
    "padding_side",
    "return_attention_mask",
    "return_mm_token_type_ids",
    "return_tensors",
    "verbose",
)
IMAGE_OPTIONS = (*(name for name in DEFAULTS if name not in ("patch_size", "return_tensors")), "limits")
GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
KNOWN = (*TEXT_OPTIONS, *IMAGE_OPTIONS)


@dataclass(frozen=True)
class ImageTokens:
    """The names and ids of the tokens that stand for an image, its row ends and its end."""

    names: tuple[str, str, str]
    image: int
    row_break: int
    end: int

    @property
    def ids(self) -> list[int]:
        """The three ids."""
        return [self.image, self.row_break, self.end]


@dataclass(frozen=True)
class ExpandedPrompt:
    """Ids with their images expanded; `spans` are the (first, past last) positions of each image."""

    ids: list[int]
    spans: list[tuple[int, int]]


def check_counts(
    prompts: Sequence[Sequence[int]], images: int, per_prompt: Sequence[int] | None, tokens: ImageTokens
) -> None:
    """Refuse another number of images than of places for them.

    Args:
        prompts: ids with one image token for each image.
        images: how many images there are.
        per_prompt: how many of them belong to each prompt, where that is known.
    """
    name = tokens.names[0]
    places = [sum(token == tokens.image for token in ids) for ids in prompts]
    if per_prompt is not None:
        if len(per_prompt) != len(prompts):
            raise PromptError(
                f"images come in {len(per_prompt)} lists but there are {len(prompts)} prompt(s); "
                "give one list of images for each prompt, an empty one where there is none"
            )
        for index, (have, want) in enumerate(zip(per_prompt, places, strict=True)):
            if have != want:
                raise PromptError(
                    f"prompt {index} has {want} {name} token(s) but {have} image(s); give one image for each {name}"
                )
    if sum(places) != images:
        if not images:
            raise PromptError(
                f"the text has {sum(places)} {name} token(s) but no images were passed; pass images=[...]"
            )
        raise PromptError(
            f"the text has {sum(places)} {name} token(s) but {images} image(s) were passed; "
            f"give one image for each {name}, in the order of the text"
        )


def expand_prompts(
    prompts: Sequence[Sequence[int]], grids: Sequence[Grid], tokens: ImageTokens
) -> list[ExpandedPrompt]:
    """Every image token replaced by its image's tokens, images taken in order over all prompts."""
    rest = iter(grids)
    expanded = []
    for prompt in prompts:
        ids: list[int] = []
        spans = []
        for token in prompt:
            if token == tokens.image:
                start = len(ids)
                ids += expand(next(rest), tokens.image, tokens.row_break, tokens.end)
                spans.append((start, len(ids)))
            else:
                ids.append(token)
        expanded.append(ExpandedPrompt(ids, spans))
    return expanded


def truncate(prompt: ExpandedPrompt, max_length: int, side: str, index: int) -> list[int]:
    """The ids shortened to `max_length`, at the "left" or "right", never through or past an image.

    Raises:
        PromptError: an image would be cut or lost; the message says which, what it needs and what there is.
    """
    remove = len(prompt.ids) - max_length
    if remove <= 0:
        return prompt.ids
    first, last = (remove, len(prompt.ids)) if side == "left" else (0, max_length)
    for image, (start, end) in enumerate(prompt.spans):
        if start < first or end > last:
            available = max(0, min(end, last) - max(start, first))
            raise PromptError(
                f"prompt {index}: max_length={max_length} leaves {available} of the {end - start} tokens of image "
                f"{image}, which takes positions {start} to {end - 1} of {len(prompt.ids)}; an image cannot be cut: "
                "raise max_length, shorten the text, or pass a smaller size={'longest_edge': ...}"
            )
    return prompt.ids[first:last]


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
