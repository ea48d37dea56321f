"""Pictures of a prompt for the engine: where they stand, and what they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pixtral.engine.request import ImageInput
from pixtral.errors import PromptError


def image_key(pixels: Tensor) -> bytes:
    """Names the content of (3, H, W) pixels: equal shapes, dtypes and values, equal keys."""
    plain = pixels.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(plain.shape)} {plain.dtype}".encode(), digest_size=16)
    digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def place_images(
    prompt_ids: Sequence[int],
    pixels: Sequence[Tensor],
    *,
    image_token: int,
    patch_size: int,
    keys: Sequence[bytes] | None = None,
) -> tuple[ImageInput, ...]:
    """The pictures of a prompt, in order of their [IMG] tokens.

    Args:
        prompt_ids: the prompt, every picture expanded to its rows of [IMG] tokens.
        pixels: (3, H, W) of each picture.
        image_token: the id of [IMG].
        patch_size: pixels of a patch's side.
        keys: names of the contents, where the caller has them; computed from the pixels otherwise.

    Raises:
        PromptError: more or fewer [IMG] tokens than patches.
    """
    images: list[ImageInput] = []
    place = 0
    for number, picture in enumerate(pixels):
        patches = (picture.shape[-2] // patch_size) * (picture.shape[-1] // patch_size)
        while place < len(prompt_ids) and prompt_ids[place] != image_token:
            place += 1
        start, found = place, 0
        while place < len(prompt_ids) and found < patches:
            found += prompt_ids[place] == image_token
            place += 1
        if found < patches or not patches:
            raise PromptError(
                f"image {number} has {patches} patches, but only {found} [IMG] tokens are left for it in the prompt; "
                "make prompt and pixels with one processor call"
            )
        if place < len(prompt_ids) and prompt_ids[place] != image_token:
            place += 1  # [IMG_END]
        key = image_key(picture) if keys is None else keys[number]
        images.append(ImageInput(start, place - start, patches, key, lambda picture=picture: picture))  # type: ignore[misc]
    left = sum(token == image_token for token in prompt_ids[place:])
    if left:
        raise PromptError(
            f"{left} [IMG] tokens of the prompt are left over by {len(images)} pictures; "
            "make prompt and pixels with one processor call"
        )
    return tuple(images)
