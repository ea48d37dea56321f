"""Arguments of generate() by name: model inputs apart from settings, arguments over files over defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pixtral.configuration import GenerationConfig
from pixtral.configuration.generation import UNSUPPORTED, refused_setting
from pixtral.errors import GenerationError, refuse_unknown

MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "inputs_embeds")
SETTINGS = tuple(field.name for field in dataclasses.fields(GenerationConfig))
EXTRAS = ("generator", "seed", "tokenizer")

# Inputs of forward() that generate() makes itself.
_OWN = "leave it out: generate() makes it itself"
_INPUTS_NOT_TAKEN = {
    "position_ids": "leave it out: positions count the real tokens of attention_mask",
    "past_key_values": "pass the whole prompt",
    "cache_position": _OWN,
    "logits_to_keep": _OWN,
    "labels": "call the model itself for a loss",
    "mm_encoder_outputs": "pass pixel_values, or inputs_embeds that hold the image features",
    "token_type_ids": "leave it out: Pixtral has no token types",
    "mm_token_type_ids": "leave it out: the ids say where images are",
    "vision_feature_layer": "set it in the model's configuration",
    "vision_feature_select_strategy": "set it in the model's configuration",
    "return_dict": "use return_dict_in_generate",
}

# What Transformers assumes when neither the call nor a file says anything.
_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_return_sequences": 1,
    "use_cache": True,
}


def split_arguments(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Model inputs, settings and extras out of generate()'s keyword arguments.

    Raises:
        UnknownArgument: a name that nobody reads.
        GenerationError: an argument of Transformers that is not implemented, unless it asks for nothing.
    """
    inputs, settings, extras, unknown = {}, {}, {}, []
    for name, value in kwargs.items():
        if name in MODEL_INPUTS:
            inputs[name] = value
        elif name in SETTINGS:
            settings[name] = value
        elif name in EXTRAS:
            extras[name] = value
        elif name in UNSUPPORTED:
            refusal = refused_setting(name, value)
            if refusal:
                raise GenerationError(f"generate(): {refusal}")
        elif name in _INPUTS_NOT_TAKEN:
            if value is not None:
                raise GenerationError(f"generate() takes no {name}; {_INPUTS_NOT_TAKEN[name]}")
        elif name not in ("trust_remote_code", "return_tensors") or value not in (None, False):
            unknown.append(name)
    refuse_unknown(unknown, "generate()", (*MODEL_INPUTS, *SETTINGS, *EXTRAS))
    return inputs, settings, extras


def merge_settings(defaults: GenerationConfig, given: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments over the given configuration over the model's own over Transformers' defaults.

    An argument that is None switches the setting off, where a None in a configuration says nothing.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        to_dict = given if isinstance(given, dict) else getattr(given, "to_dict", lambda: None)()
        if not isinstance(to_dict, dict):
            raise GenerationError(
                f"generation_config is {type(given).__name__}, expected pixtral.GenerationConfig or a dictionary"
            )
        given = GenerationConfig.from_dict(to_dict)
    merged: dict[str, Any] = dict(_DEFAULTS)
    for config in (defaults, given):
        if config is not None:
            merged.update({name: value for name in SETTINGS if (value := getattr(config, name)) is not None})
    merged.update(arguments)
    return {name: merged.get(name) for name in SETTINGS}
