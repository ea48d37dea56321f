"""Model inputs of generate(): padded batches in, one packed prompt each out, images encoded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from pixtral.engine.model import PackedModel
from pixtral.engine.request import check_prompt_length
from pixtral.errors import GenerationError, ImageError, PromptError, UnknownArgument
from pixtral.generation.loop import Prompt
from pixtral.images.pixels import crop_images


class VisionModel(PackedModel, Protocol):
    """A model that also takes images."""

    config: Any

    def encode_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """(3, H, W) each -> (rows * columns, C) each."""
        ...

    def embed(self, input_ids: Tensor, image_features: Sequence[Tensor] | None = None) -> Tensor:
        """(N,) int64 -> (N, C) with the features at the [IMG] tokens."""
        ...


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the output is built upon.

    Attributes:
        input_ids: (B, S) int64 as given, on the caller's device; S is 0 with embeddings alone.
        real: for each prompt the columns that hold a token, (S',) bool.
        embeds: (B, S', C), or None where the ids say all.
    """

    input_ids: Tensor
    real: Tensor
    embeds: Tensor | None

    @property
    def hidden_length(self) -> int:
        """Columns of a prompt that do not stand in the output."""
        return self.real.shape[1] - self.input_ids.shape[1]


def read_inputs(
    model: PackedModel,
    inputs: Tensor | None,
    given: dict[str, Any],
    *,
    bos: int | None,
    pad: int | None,
    eos: tuple[int, ...],
) -> Inputs:
    """Check ids, mask and embeddings against each other.

    Raises:
        GenerationError: nothing to start from, or `inputs` beside `input_ids`.
        PromptError: wrong shapes or dtypes.
    """
    ids, embeds, mask = given.get("input_ids"), given.get("inputs_embeds"), given.get("attention_mask")
    if inputs is not None and ids is not None:
        raise GenerationError("generate() got its prompt twice, as inputs and as input_ids; pass one of them")
    ids = inputs if ids is None else ids
    if ids is None and embeds is None:
        if given.get("pixel_values") is not None:
            raise PromptError("generate() got pixel_values without a prompt; pass input_ids with its [IMG] tokens")
        if bos is None:
            raise GenerationError("generate() got no prompt and there is no bos_token_id to start from; pass input_ids")
        ids = torch.tensor([[bos]], device=model.device)
    if embeds is not None:
        width = model.text_config.hidden_size
        if not isinstance(embeds, Tensor) or embeds.dim() != 3 or embeds.shape[-1] != width:
            raise PromptError(f"inputs_embeds is {_describe(embeds)}, expected a tensor (batch, tokens, {width})")
    if ids is None:
        assert embeds is not None
        ids = torch.empty(len(embeds), 0, dtype=torch.int64, device=embeds.device)
    else:
        _check_ids(ids, model.text_config.vocab_size)
        if embeds is not None and ids.shape[1] and embeds.shape[:2] != ids.shape:
            raise PromptError(
                f"input_ids {tuple(ids.shape)} and inputs_embeds {tuple(embeds.shape)} disagree; give the ids of the "
                "same tokens, or none"
            )
    shape = tuple((ids if embeds is None else embeds).shape[:2])
    if mask is None:
        real = torch.ones(shape, dtype=torch.bool, device=ids.device)
        if ids.shape[1] and pad is not None and pad not in eos:
            real = ids != pad  # as Transformers: padding is recognised by its id, unless that also ends sequences
    else:
        if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
            raise PromptError(f"attention_mask is {_describe(mask)}, expected a tensor of the prompts' shape {shape}")
        real = mask.to(ids.device) != 0
    return Inputs(ids, real, embeds)


def _check_ids(ids: object, vocabulary: int) -> None:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) == 0:
        raise PromptError(
            f"input_ids is {_describe(ids)}, expected a tensor (batch, tokens) of at least one prompt; "
            "a single prompt of n tokens has shape (1, n)"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise PromptError(f"input_ids has dtype {ids.dtype}, expected torch.int64 token ids")
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary):
        raise PromptError(
            f"input_ids reach from {int(ids.min())} to {int(ids.max())}, the vocabulary has {vocabulary} tokens; the "
            "tokenizer belongs to another model"
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"a {type(value).__name__}"


@torch.no_grad()
def make_prompts(model: PackedModel, inputs: Inputs, pixel_values: object, image_sizes: object) -> list[Prompt]:
    """Embed every prompt without its padding; all images in one pass of the tower.

    Raises:
        UnknownArgument: images for a model without a tower.
        PromptError: images and [IMG] tokens do not fit together.
        ImageError: pixel_values of a wrong shape or dtype.
    """
    device, dtype = model.device, model.dtype
    real = inputs.real.to(device)
    lengths: list[int] = real.sum(1).tolist()
    for index, length in enumerate(lengths):  # before the tower works on images in vain
        check_prompt_length(index, length, model.text_config)
    packed_ids = inputs.input_ids.to(device)[real] if inputs.input_ids.shape[1] else None
    if inputs.embeds is not None:
        if pixel_values is not None:
            raise PromptError(
                "inputs_embeds already hold the images' features; leave pixel_values or inputs_embeds out"
            )
        embeds = inputs.embeds.to(device, dtype)[real]
    elif not hasattr(model, "encode_images"):
        if pixel_values is not None or image_sizes is not None:
            raise UnknownArgument(
                f"{type(model).__name__} reads text only; pixel_values and image_sizes are not for it"
            )
        assert packed_ids is not None
        embeds = model.embed(packed_ids)
    else:
        assert packed_ids is not None
        vision = cast(VisionModel, model)
        images = read_images(pixel_values, image_sizes, device, dtype)
        check_images(vision.config, packed_ids, lengths, images)
        embeds = vision.embed(packed_ids, vision.encode_images(images) if images else None)
    ids = torch.split(packed_ids, lengths) if packed_ids is not None else None
    image_token = cast(VisionModel, model).config.image_token_index if hasattr(model, "encode_images") else None
    return [
        Prompt(part, () if ids is None else tuple(ids[i].tolist()), image_token)
        for i, part in enumerate(torch.split(embeds, lengths))
    ]


def read_images(pixel_values: object, image_sizes: object, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The images of all prompts in order, (3, H, W) each in the model's dtype."""
    if pixel_values is None:
        if image_sizes is not None:
            raise ImageError("generate() got image_sizes without pixel_values; pass both as the processor made them")
        return []
    images: list[Any] = list(pixel_values) if isinstance(pixel_values, (list, tuple)) else [pixel_values]
    for image in images:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            raise ImageError(
                f"pixel_values is {_describe(image)}, expected normalised pixels as floating-point numbers; "
                "make them with the processor"
            )
    if image_sizes is not None and not isinstance(image_sizes, (Tensor, list, tuple)):
        raise ImageError(f"image_sizes is {_describe(image_sizes)}, expected (height, width) of each image")
    if isinstance(pixel_values, Tensor):
        images = crop_images(pixel_values, image_sizes)
    for index, image in enumerate(images):
        if image.dim() != 3:
            raise ImageError(f"image {index} has shape {tuple(image.shape)}, expected (3, height, width)")
        size = tuple(image_sizes[index]) if image_sizes is not None and index < len(image_sizes) else image.shape[1:]
        if tuple(map(int, size)) != tuple(image.shape[1:]):
            raise ImageError(f"image {index} has shape {tuple(image.shape)}, but image_sizes says {tuple(size)}")
    return [image.to(device, dtype) for image in images]


def check_images(config: Any, ids: Tensor, lengths: Sequence[int], images: Sequence[Tensor]) -> None:
    """Every prompt's [IMG] tokens must be those of whole images, taken in order.

    Raises:
        PromptError: naming the prompt, its tokens and the images' features.
    """
    patch = config.vision_config.patch_size
    features = [(image.shape[1] // patch) * (image.shape[2] // patch) for image in images]
    wanted = [int((part == config.image_token_index).sum()) for part in torch.split(ids, list(lengths))]
    total = f"{sum(wanted)} [IMG] tokens in {len(wanted)} prompts, {len(images)} images of {features} features"
    taken = 0
    for prompt, count in enumerate(wanted):
        found = 0
        while found < count and taken < len(features):
            found += features[taken]
            taken += 1
        if found != count:
            raise PromptError(
                f"Image features and image tokens do not match: prompt {prompt} has {count} [IMG] tokens, the images "
                f"left for it give {found} ({total}); make prompt and pixels with one processor call, and do not cut "
                "the prompt inside an image"
            )
    if taken < len(features):
        raise PromptError(
            f"Image features and image tokens do not match: {len(features) - taken} images are left over ({total}); "
            "every image needs its [IMG] tokens in a prompt"
        )
