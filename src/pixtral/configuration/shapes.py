"""Named model shapes for `pixtral bench`, as configurations."""

from __future__ import annotations

import dataclasses

from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import ConfigError, nearest

# name -> (vocabulary, decoder (width, feed-forward, layers, heads, key heads, head size), tower (width, feed-forward,
# layers, heads), bias of the projector, [IMG_BREAK], [IMG_END])
_SHAPES = {
    "pixtral-12b": (131072, (5120, 14336, 40, 32, 8, 128), (1024, 4096, 24, 16), True, 12, 13),
    "pixtral-large": (32768, (12288, 28672, 88, 96, 8, 128), (1408, 6144, 40, 16), False, 14, 15),
    "mid": (32768, (2048, 5632, 16, 16, 4, 128), (512, 2048, 12, 8), True, 12, 13),
    "tiny": (2048, (256, 512, 4, 4, 2, 64), (128, 256, 3, 4), True, 12, 13),
}
NAMES = tuple(_SHAPES)


def shape_config(name: str) -> LlavaConfig:
    """The configuration of a named shape.

    Raises:
        ConfigError: there is no such shape.
    """
    if name not in _SHAPES:
        raise ConfigError(f"shape is {name!r}; expected one of {', '.join(NAMES)} ({nearest(name, NAMES)})")
    vocabulary, decoder, tower, bias, img_break, img_end = _SHAPES[name]
    width, wide, layers, heads, key_heads, head_dim = decoder
    vision_width, vision_wide, vision_layers, vision_heads = tower
    return LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=vision_width,
            intermediate_size=vision_wide,
            num_hidden_layers=vision_layers,
            num_attention_heads=vision_heads,
            hidden_act="silu",
            rope_theta=10000.0,
        ),
        text_config=MistralConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=head_dim,
            rms_norm_eps=1e-5,
            rope_theta=1e9,
            sliding_window=None,
        ),
        image_token_index=10,
        image_break_token_id=img_break,
        image_end_token_id=img_end,
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=bias,
    )


def with_layers(config: LlavaConfig, layers: int) -> LlavaConfig:
    """The same network with only the first `layers` blocks of its decoder.

    Raises:
        ConfigError: it has fewer.
    """
    there = config.text_config.num_hidden_layers
    if not 1 <= layers <= there:
        raise ConfigError(f"layers is {layers}; expected a number from 1 to {there}, the layers of this decoder")
    text = dataclasses.replace(config.text_config, num_hidden_layers=layers)
    return dataclasses.replace(config, text_config=text)
