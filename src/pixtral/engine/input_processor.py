"""From what a caller asks to what the engine runs: requests are checked completely before they cost anything."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pixtral.engine.block_manager import BLOCK_SIZE
from pixtral.engine.config import EngineConfig
from pixtral.engine.model import PackedModel, cache_dtype
from pixtral.engine.request import EngineRequest, ImageInput, Request, context_length
from pixtral.errors import ConfigError, GenerationError, PromptError
from pixtral.ops.kv_cache import token_bytes

ROOM = 512  # new tokens for which blocks are taken with the prompt's, where the cache grows


class InputProcessor:
    """Knows what the engine can hold and makes `Request`s of an `EngineRequest`.

    Attributes:
        num_blocks: of the key-value cache, at first if it grows.
        max_model_len: tokens of prompt and answer together.
        image_token: the id of [IMG], None for a model that reads text only.
    """

    def __init__(
        self, model: PackedModel, config: EngineConfig, has_tokenizer: bool, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._config = config
        self._has_tokenizer = has_tokenizer
        self._eos = eos_token_ids
        self._vocabulary = model.text_config.vocab_size
        self._arrivals = itertools.count()
        self.image_token: int | None = getattr(cast(Any, model).config, "image_token_index", None)
        context = context_length(model.text_config)
        wanted = config.max_model_len or context
        if wanted > context:
            raise ConfigError(f"max_model_len is {wanted}, but the context of the model is {context}; lower it")
        per_token = token_bytes(model.text_config, cache_dtype(config.kv_cache, model.dtype))
        if config.kv_cache_bytes is None:
            self.num_blocks, self.max_model_len = 1, wanted
            return
        most = -(-wanted // BLOCK_SIZE) * config.max_num_seqs
        self.num_blocks = min(config.kv_cache_bytes // (per_token * BLOCK_SIZE), most)
        self.max_model_len = min(wanted, self.num_blocks * BLOCK_SIZE)
        if (self.max_model_len < wanted and config.max_model_len is not None) or self.num_blocks == 0:
            raise ConfigError(
                f"kv_cache_bytes is {config.kv_cache_bytes}, which holds {self.num_blocks * BLOCK_SIZE} tokens of "
                f"{per_token} bytes, but max_model_len is {wanted}; give it {wanted * per_token} bytes, or lower "
                "max_model_len"
            )

    def process(self, request: EngineRequest) -> list[Request]:
        """The continuations of a request.

        Raises:
            PromptError: an empty prompt, one that leaves no room, ids out of range, images that do not fit.
            GenerationError: parameters that this engine cannot honour.
        """
        length = len(request.prompt_ids)
        self._check_prompt(request)
        params = request.params
        if params.stop and not self._has_tokenizer:
            raise GenerationError(f"stop strings {list(params.stop)} need a tokenizer; make the engine with one")
        named = [("logit_bias", token) for token, _ in params.logit_bias]
        for name, token in (*named, *(("stop_token_ids", token) for token in params.stop_token_ids)):
            if token >= self._vocabulary:
                raise GenerationError(f"{name} names token {token}, the vocabulary has {self._vocabulary} tokens")
        ends = params.stop_token_ids if params.ignore_eos else (*params.stop_token_ids, *self._eos)
        params = dataclasses.replace(params, stop_token_ids=tuple(dict.fromkeys(ends)))
        room = self.max_model_len - length
        arrival = next(self._arrivals)
        return [
            Request(
                params,
                request.prompt_ids,
                length,
                min(params.max_tokens or room, room),
                images=request.images,
                reserve=min(params.max_tokens or room, room, ROOM) if self._config.kv_cache_bytes is None else 0,
                prompt_lookup=request.prompt_lookup or self._config.prompt_lookup,
                request_id=request.request_id,
                index=index,
                order=(request.priority, arrival, index),
            )
            for index in range(params.n)
        ]

    def _check_prompt(self, request: EngineRequest) -> None:
        ids, length = request.prompt_ids, len(request.prompt_ids)
        if not length:
            raise PromptError("the prompt is empty, expected at least one token; start with the BOS token")
        if length >= self.max_model_len:
            raise PromptError(
                f"the prompt has {length} tokens, the context is {self.max_model_len}, new tokens included; "
                "shorten the text or make the images smaller"
            )
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            raise PromptError(
                f"the prompt's ids reach from {min(ids)} to {max(ids)}, the vocabulary has {self._vocabulary} tokens; "
                "the tokenizer belongs to another model"
            )
        if request.images and self.image_token is None:
            raise PromptError("the model reads text only; leave the images out")
        end = 0
        for number, image in enumerate(request.images):
            found = ids[image.start : image.end].count(cast(int, self.image_token))
            if not end <= image.start < image.end <= length or found != image.num_features:
                raise PromptError(
                    f"image {number} has {image.num_features} features for {found} [IMG] tokens at places "
                    f"{image.start} to {image.end} of {length}; make prompt and pixels with one processor call"
                )
            end = image.end
        if self.image_token is not None:
            total, known = ids.count(self.image_token), sum(image.num_features for image in request.images)
            if total != known:
                raise PromptError(
                    f"the prompt has {total} [IMG] tokens, its {len(request.images)} images {known} patches; make "
                    "prompt and pixels with one processor call"
                )


def image_key(pixels: Tensor) -> bytes:
    """Hash of (3, H, W) pixels: equal shapes, dtypes and values give equal keys."""
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
    """The images of a prompt given as ids and pixels, by the positions of their [IMG] tokens.

    Args:
        prompt_ids: the prompt, every image expanded to its rows of [IMG] tokens.
        pixels: (3, H, W) of each image.
        image_token: the id of [IMG].
        patch_size: pixels of a patch's side.
        keys: hashes of the pixels, where the caller has them; computed from the pixels otherwise.

    Raises:
        PromptError: more or fewer [IMG] tokens than patches.
    """
    images: list[ImageInput] = []
    place = 0
    for number, image in enumerate(pixels):
        patches = (image.shape[-2] // patch_size) * (image.shape[-1] // patch_size)
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
        key = image_key(image) if keys is None else keys[number]
        images.append(ImageInput(start, place - start, patches, key, lambda image=image: image))  # type: ignore[misc]
    left = sum(token == image_token for token in prompt_ids[place:])
    if left:
        raise PromptError(
            f"{left} [IMG] tokens of the prompt are left over by {len(images)} images; "
            "make prompt and pixels with one processor call"
        )
    return tuple(images)
