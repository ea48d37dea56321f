"""Random small Pixtral networks, and the same network as Transformers builds it, with one set of weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixtral.configuration import LlavaConfig
from pixtral.models.llava import LlavaForConditionalGeneration

IMG, BREAK, END = 10, 12, 13
PATCH = 4


def llava_dict(
    *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    """The content of a small Pixtral's config.json; arguments override fields of its parts or of the top level."""
    return {
        "model_type": "llava",
        "image_token_index": IMG,
        "image_seq_length": 1,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": False,
        **top,
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_channels": 3,
            "image_size": 64,
            "patch_size": PATCH,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            **(vision or {}),
        },
        "text_config": {
            "model_type": "mistral",
            "vocab_size": 96,
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e9,
            "sliding_window": None,
            **(text or {}),
        },
    }


# Networks that differ in everything a configuration can change.
VARIANTS: dict[str, dict[str, Any]] = {
    "pixtral": llava_dict(),
    "multi_head": llava_dict(
        text={"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "rope_theta": 1e4},
        vision={"hidden_act": "gelu", "num_attention_heads": 4, "rope_theta": 100.0},
    ),
    "one_kv_head": llava_dict(
        text={"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 32, "hidden_act": "gelu"},
        vision={"hidden_size": 48, "num_attention_heads": 1, "num_hidden_layers": 1},
        multimodal_projector_bias=False,
        image_token_index=77,
    ),
    "inner_layer": llava_dict(vision_feature_layer=-2, text={"tie_word_embeddings": True}),
    "first_layer": llava_dict(vision_feature_layer=1, projector_hidden_act="relu", tie_word_embeddings=True),
    "several_layers": llava_dict(vision_feature_layer=[0, -2, 3], vision={"num_channels": 1, "patch_size": 6}),
}


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights large enough that every part of the network shows in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise)


def random_llava(values: dict[str, Any] | None = None, seed: int = 0) -> LlavaForConditionalGeneration:
    """A Pixtral of ours with random weights, in eval mode."""
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(copy.deepcopy(values or llava_dict())))
    randomize(model, seed)
    return model.eval()


@dataclasses.dataclass
class Batch:
    """Inputs of forward(), as a processor makes them."""

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor | None
    image_sizes: Tensor | None

    def inputs(self, **more: Any) -> dict[str, Any]:
        """As keyword arguments, without what is missing."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in {**fields, **more}.items() if value is not None}


# (height, width) in patches of the images of each prompt, with runs of text between them
MIXED: tuple[tuple[tuple[int, int], ...], ...] = ((), ((2, 3),), ((1, 1), (4, 2), (2, 5)))


def random_batch(
    config: LlavaConfig,
    grids: Sequence[Sequence[tuple[int, int]]] = MIXED,
    *,
    side: str = "left",
    seed: int = 0,
) -> Batch:
    """Prompts of unequal length, each with images of its own, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    patch, image_token = config.vision_config.patch_size, config.image_token_index
    special = {image_token, IMG, BREAK, END}
    words = torch.tensor([i for i in range(config.text_config.vocab_size) if i not in special])

    def text(n: int) -> list[int]:
        return words[torch.randint(len(words), (n,), generator=generator)].tolist()

    rows: list[list[int]] = []
    for index, images in enumerate(grids):
        ids = text(3 + index)
        for height, width in images:
            ids += ([image_token] * width + [BREAK]) * height
            ids[-1] = END
            ids += text(2)
        rows.append(ids)
    length = max(map(len, rows))
    pad = [(0, length - len(ids)) if side == "right" else (length - len(ids), 0) for ids in rows]
    input_ids = torch.tensor([[0] * a + ids + [0] * b for ids, (a, b) in zip(rows, pad, strict=True)])
    mask = torch.tensor([[0] * a + [1] * len(ids) + [0] * b for ids, (a, b) in zip(rows, pad, strict=True)])
    flat = [grid for images in grids for grid in images]
    if not flat:
        return Batch(input_ids, mask, None, None)
    sizes = torch.tensor(flat) * patch
    height, width = sizes.amax(0).tolist()
    pixels = torch.zeros(len(flat), config.vision_config.num_channels, height, width)
    for image, (h, w) in zip(pixels, sizes.tolist(), strict=True):
        image[:, :h, :w] = torch.randn(len(image), h, w, generator=generator)
    return Batch(input_ids, mask, pixels, sizes)


@dataclasses.dataclass
class Pair:
    """One network twice: `ours`, and `theirs` from Transformers, with equal weights."""

    ours: LlavaForConditionalGeneration
    theirs: Any


def random_pair(values: dict[str, Any] | None = None, *, seed: int = 0, attention: str = "sdpa") -> Pair:
    """Build a network with Transformers from the content of a config.json, and ours with its weights."""
    import transformers  # heavy, and only the parity tests need it

    values = values or llava_dict()
    config = transformers.LlavaConfig(**copy.deepcopy(values))
    theirs = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    randomize(theirs, seed)
    ours = LlavaForConditionalGeneration(LlavaConfig.from_dict(copy.deepcopy(values)))
    ours.load_state_dict(theirs.state_dict())
    return Pair(ours.eval(), theirs.eval())


def packable_dict(**top: Any) -> dict[str, Any]:
    """As `llava_dict`, with widths that groups of 64 or 32 divide, and rows that tiles of 16 do not."""
    text = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 100, "num_attention_heads": 4, "head_dim": 24}
    vision = {"hidden_size": 64, "intermediate_size": 160}
    return llava_dict(text={**text, **top.pop("text", {})}, vision={**vision, **top.pop("vision", {})}, **top)
