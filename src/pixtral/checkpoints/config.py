"""The configuration of a checkpoint; fields that its file leaves out are derived from the weights' shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from pixtral.checkpoints import names
from pixtral.checkpoints.layout import Files
from pixtral.checkpoints.names import Scheme
from pixtral.checkpoints.safetensors_io import TensorInfo
from pixtral.configuration import Config, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.hub import read_json

_BIAS = "model.multi_modal_projector.linear_1.bias"


@dataclass(frozen=True)
class Kind:
    """One of the three networks a checkpoint can hold or a caller can ask for.

    Args:
        architecture: its name in config.json, and the class attribute `architecture` of the model.
        config: its configuration.
        own: how its modules name their parameters.
        published: how files of this network name them.
        parts: names of what it consists of, for messages.
    """

    architecture: str
    config: type[Config]
    own: Scheme
    published: Scheme
    parts: str


# Architecture -> class that is built. The models, which stand above, hand themselves in: `pixtral.models.NETWORKS`.
Networks: TypeAlias = Mapping[str, type[nn.Module]]

LLAVA = Kind("LlavaForConditionalGeneration", LlavaConfig, names.CANONICAL, names.HF, "tower, projector and decoder")
MISTRAL = Kind("MistralForCausalLM", MistralConfig, names.HF_TEXT, names.HF_TEXT, "a decoder")
VISION = Kind("PixtralVisionModel", PixtralVisionConfig, names.HF_VISION, names.HF_VISION, "a vision tower")
KINDS = (LLAVA, MISTRAL, VISION)


def kind_of(cls: type[nn.Module]) -> Kind:
    """Which network a model class is.

    Raises:
        CheckpointError: the class is none of the three, nor derived from one.
    """
    for kind in KINDS:
        if getattr(cls, "architecture", None) == kind.architecture:
            return kind
    known = ", ".join(kind.architecture for kind in KINDS)
    raise CheckpointError(f"{cls.__name__} has no checkpoint format; expected {known} or a class derived from one")


def read_raw(files: Files) -> dict[str, Any]:
    """The JSON object of config.json or params.json.

    Raises:
        ConfigError: not valid JSON.
    """
    return read_json(files.config)


def stored_quantization(files: Files, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """`quantization_config` of the configuration file; None for full precision.

    Raises:
        CheckpointError: they are quantized in a way that is not read.
    """
    for key in ("quantization", "compression_config"):  # of Mistral's programs, and of compressed-tensors
        if raw.get(key):
            method = raw[key].get("quant_method", raw[key]) if isinstance(raw[key], dict) else raw[key]
            raise CheckpointError(
                f"{files.config} says the weights are quantized ({method}); that is not read: "
                "use the checkpoint in bfloat16"
            )
    found = raw.get("quantization_config")
    if found and files.layout == "mistral":
        raise CheckpointError(
            f"{files.config} has a quantization_config, but Mistral's layout is read in full precision only: "
            "remove it if the weights are not quantized"
        )
    if found and not isinstance(found, dict):
        raise ConfigError(f"{files.config} has quantization_config {found!r}; expected an object")
    return found or None


def whole_config(files: Files, raw: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Config:
    """The configuration of everything in the files: LlavaConfig, MistralConfig or PixtralVisionConfig.

    Args:
        files: for messages, and for the layout.
        raw: the content of the configuration file (`read_raw`).
        tensors: canonical name -> tensor; fields that the file leaves out are derived from their shapes.
    """
    values = copy.deepcopy(dict(raw))
    if files.layout == "mistral":
        vision = values.get("vision_encoder")
        if isinstance(vision, dict) and "adapter_bias" not in vision and tensors:
            vision["adapter_bias"] = _BIAS in tensors
        if values.get("head_dim") is None and "n_heads" in values:
            _derive_head_dim(values, values["n_heads"], tensors)
        config = LlavaConfig.from_params(values)
        config.dtype = config.text_config.dtype = config.vision_config.dtype = None  # not in params.json
        return config
    kind = _model_type(values)
    if kind is LLAVA:
        if "multimodal_projector_bias" not in values and tensors and names.part_of(_BIAS) in _parts(tensors):
            values["multimodal_projector_bias"] = _BIAS in tensors
        text = values.setdefault("text_config", {})
    else:
        text = values
    if kind is not VISION and isinstance(text, dict) and text.get("head_dim") is None:
        heads = text.get("num_attention_heads", MistralConfig.num_attention_heads)
        _derive_head_dim(text, heads, tensors)
    return kind.config.from_dict(values)


def narrow(config: Config, kind: Kind, where: object) -> Config:
    """The part of a checkpoint's configuration that a network needs.

    Raises:
        CheckpointError: the checkpoint is of a network that does not contain the one asked for.
    """
    if isinstance(config, kind.config):
        return config
    if isinstance(config, LlavaConfig) and kind is MISTRAL:
        return config.text_config
    if isinstance(config, LlavaConfig) and kind is VISION:
        return config.vision_config
    found = next(one for one in KINDS if isinstance(config, one.config))
    raise CheckpointError(
        f"{where} describes {found.parts} ({type(config).__name__}), expected {kind.parts}; "
        f"load it with {found.architecture}"
    )


def settle_head_dim(config: Config, tensors: Mapping[str, TensorInfo]) -> None:
    """Put the weights' head dimension into a configuration that only divided for it (in place)."""
    text = config.text_config if isinstance(config, LlavaConfig) else config
    if isinstance(text, MistralConfig) and text.head_dim_is_derived:
        values: dict[str, Any] = {}
        _derive_head_dim(values, text.num_attention_heads, tensors)
        text.head_dim = values.get("head_dim", text.head_dim)
        text.head_dim_is_derived = "head_dim" not in values


def _model_type(values: Mapping[str, Any]) -> Kind:
    named = values.get("model_type")
    if named is None and ("text_config" in values or "vision_config" in values):
        return LLAVA
    for kind in KINDS:
        if named == kind.config.model_type:
            return kind
    known = ", ".join(repr(kind.config.model_type) for kind in KINDS)
    raise ConfigError(f"config.json has model_type {named!r}; expected one of {known}")


def _parts(tensors: Mapping[str, TensorInfo]) -> set[str]:
    return {names.part_of(name) for name in tensors}


def _derive_head_dim(values: dict[str, Any], heads: object, tensors: Mapping[str, TensorInfo]) -> None:
    """Set values["head_dim"] to the rows of the first q projection over the heads; nothing when it is not there."""
    first = tensors.get("model.language_model.layers.0.self_attn.q_proj.weight")
    if first is None or type(heads) is not int or heads <= 0:
        return
    if len(first.shape) != 2 or first.shape[0] % heads:
        raise CheckpointError(
            f"{first.file}: {first.name!r} has shape {list(first.shape)}, which {heads} heads do not divide; "
            "check num_attention_heads in the configuration"
        )
    values["head_dim"] = first.shape[0] // heads
