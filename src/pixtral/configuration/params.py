"""Mistral's `params.json` to and from the fields of the network's configurations."""

from __future__ import annotations

from typing import Any

from pixtral.errors import ConfigError, nearest

TEXT_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
VISION_FIELDS = {
    "hidden_size": "hidden_size",
    "num_channels": "num_channels",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "rope_theta": "rope_theta",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
}
# Fields of the native vision encoder that are not the tower's own, with the only values Pixtral has (None: any).
ADAPTER_FIELDS: dict[str, tuple[Any, ...] | None] = {
    "adapter_bias": None,
    "image_token_id": None,
    "image_break_token_id": None,
    "image_end_token_id": None,
    "max_image_size": None,
    "mm_projector_id": ("", None),
    "spatial_merge_size": (1, None),
    "add_pre_mm_projector_layer_norm": (False, None),
}
# Native defaults where a file may leave the field out; the rest must be there.
NATIVE_DEFAULTS = {"rope_theta": 1e9, "norm_eps": 1e-5, "max_position_embeddings": 131072, "tied_embeddings": False}
VISION_DEFAULTS = {"rope_theta": 1e4, "num_channels": 3}
NEUTRAL = {"sliding_window": (None,), "moe": (None,), "model_type": ("transformer",), "causal": (True,)}


def _take(values: dict[str, Any], fields: dict[str, str], defaults: dict[str, Any], where: str) -> dict[str, Any]:
    """Move the known native fields out of `values`, under Transformers' names."""
    taken = {}
    for native, field in fields.items():
        if native in values:
            taken[field] = values.pop(native)
        elif native in defaults:
            taken[field] = defaults[native]
        else:
            raise ConfigError(f"{where} has no field {native!r}; expected Mistral's params.json of a Pixtral model")
    return taken


def _refuse(
    values: dict[str, Any], allowed: dict[str, tuple[Any, ...] | None], fields: dict[str, str], where: str
) -> None:
    """Raise for a field that would change the network in a way that is not implemented."""
    known = {*allowed, *fields}
    for key, value in values.items():
        if key not in allowed:
            raise ConfigError(f"{where} has the field {key!r}, which Pixtral does not have; {nearest(key, known)}")
        accepted = allowed[key]
        if accepted is not None and value not in accepted:
            raise ConfigError(f"{where}.{key} is {value!r}; only {accepted[0]!r} is implemented")


def llava_from_params(params: dict[str, Any]) -> dict[str, Any]:
    """The arguments of LlavaConfig for the content of a `params.json`.

    Raises:
        ConfigError: no vision encoder in it, a missing field, or a field that Pixtral does not have.
    """
    values = dict(params)
    vision = values.pop("vision_encoder", None)
    if vision is None:
        vision = (values.pop("multimodal", None) or {}).get("vision_encoder_args")
    if not isinstance(vision, dict):
        raise ConfigError("params.json has no 'vision_encoder'; expected the file of a Pixtral model, not a text model")
    text = _take(values, TEXT_FIELDS, NATIVE_DEFAULTS, "params.json")
    _refuse(values, dict(NEUTRAL), TEXT_FIELDS, "params.json")
    adapter = dict(vision)
    tower = _take(adapter, VISION_FIELDS, VISION_DEFAULTS, "params.json vision_encoder")
    _refuse(adapter, ADAPTER_FIELDS, VISION_FIELDS, "params.json vision_encoder")
    return {
        "vision_config": {**tower, "hidden_act": "silu", "dtype": "bfloat16"},
        "text_config": {**text, "sliding_window": None, "hidden_act": "silu", "dtype": "bfloat16"},
        "image_token_index": adapter.get("image_token_id", 10),
        "image_break_token_id": adapter.get("image_break_token_id"),
        "image_end_token_id": adapter.get("image_end_token_id"),
        "image_seq_length": 1,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": adapter.get("adapter_bias", True),
        "tie_word_embeddings": text["tie_word_embeddings"],
        "dtype": "bfloat16",
    }


def llava_to_params(config: Any) -> dict[str, Any]:
    """The content of `params.json` for a `LlavaConfig` (not imported: `network.py` imports this file).

    Raises:
        ConfigError: the network has a part that Mistral's format cannot describe.
    """
    text, vision = config.text_config, config.vision_config
    layer = config.vision_feature_layer
    expected: list[tuple[str, object, tuple[object, ...]]] = [
        ("vision_config.hidden_act", vision.hidden_act, ("silu", "swish")),
        ("text_config.hidden_act", text.hidden_act, ("silu", "swish")),
        ("projector_hidden_act", config.projector_hidden_act, ("gelu",)),
        ("vision_feature_layer", layer, (-1, vision.num_hidden_layers)),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, ("full",)),
        ("text_config.sliding_window", text.sliding_window, (None,)),
    ]
    for name, found, allowed in expected:
        if found not in allowed:
            raise ConfigError(f"{name} is {found!r}; Mistral's layout knows only {allowed[0]!r}: save with layout='hf'")
    params: dict[str, Any] = {native: getattr(text, field) for native, field in TEXT_FIELDS.items()}
    if not params["tied_embeddings"]:
        del params["tied_embeddings"]
    tower: dict[str, Any] = {native: getattr(vision, field) for native, field in VISION_FIELDS.items()}
    tower |= {"adapter_bias": config.multimodal_projector_bias, "image_token_id": config.image_token_index}
    for name in ("image_break_token_id", "image_end_token_id"):
        if getattr(config, name) is not None:
            tower[name] = getattr(config, name)
    return {**params, "vision_encoder": tower}
