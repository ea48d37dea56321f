"""The published models: configurations as literal files, tensors as literal shapes, matched by the name tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import PREFIXES, native_name, prefixed
from published_configs import CONFIG_12B, PARAMS_12B, PARAMS_LARGE

from pixtral.checkpoints import names
from pixtral.checkpoints.config import KINDS, whole_config
from pixtral.checkpoints.layout import Files
from pixtral.checkpoints.opening import build_empty
from pixtral.checkpoints.plan import Contents, make_plan, problems, wanted_by
from pixtral.checkpoints.safetensors_io import TensorInfo
from pixtral.models import NETWORKS


def shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a native checkpoint, from the numbers of its params.json."""
    vision, dim, head = params["vision_encoder"], params["dim"], params["head_dim"]
    wide, inner = vision["hidden_size"], vision["intermediate_size"]
    queries, keys, hidden = params["n_heads"] * head, params["n_kv_heads"] * head, params["hidden_dim"]
    found: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (params["vocab_size"], dim),
        "output.weight": (params["vocab_size"], dim),
        "norm.weight": (dim,),
        "vision_encoder.patch_conv.weight": (wide, 3, 16, 16),
        "vision_encoder.ln_pre.weight": (wide,),
        "vision_language_adapter.w_in.weight": (dim, wide),
        "vision_language_adapter.w_out.weight": (dim, dim),
    }
    if vision["adapter_bias"]:
        found |= {"vision_language_adapter.w_in.bias": (dim,), "vision_language_adapter.w_out.bias": (dim,)}
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"vision_encoder.transformer.layers.{layer}."
        found |= {f"{prefix}attention.w{x}.weight": (wide, wide) for x in "qkvo"}
        found |= {f"{prefix}feed_forward.w{x}.weight": (inner, wide) for x in "13"}
        found[f"{prefix}feed_forward.w2.weight"] = (wide, inner)
        found |= {f"{prefix}{norm}.weight": (wide,) for norm in ("attention_norm", "ffn_norm")}
    for layer in range(params["n_layers"]):
        prefix = f"layers.{layer}."
        found[f"{prefix}attention.wq.weight"] = (queries, dim)
        found |= {f"{prefix}attention.w{x}.weight": (keys, dim) for x in "kv"}
        found[f"{prefix}attention.wo.weight"] = (dim, queries)
        found |= {f"{prefix}feed_forward.w{x}.weight": (hidden, dim) for x in "13"}
        found[f"{prefix}feed_forward.w2.weight"] = (dim, hidden)
        found |= {f"{prefix}{norm}.weight": (dim,) for norm in ("attention_norm", "ffn_norm")}
    return found


def matched(layout: str, raw: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> tuple[Any, list[str], Contents]:
    """The configuration and the problems of a checkpoint of these tensors."""
    infos = {}
    for name, shape in tensors.items():
        infos[name] = TensorInfo(name, torch.bfloat16, shape, Path("x"), 0, 2 * math.prod(shape))
    scheme, canonical = names.canonical_names(infos)
    unknown = tuple(name for name, ours in canonical.items() if ours is None)
    files = Files(Path(), layout, Path("config.json"), (Path("x"),))
    contents = Contents(files, scheme, {c: infos[n] for n, c in canonical.items() if c is not None}, unknown, ())
    config = whole_config(files, raw, contents.tensors)
    kind = next(kind for kind in KINDS if isinstance(config, kind.config))
    wanted = wanted_by(build_empty(NETWORKS[kind.architecture], config), torch.bfloat16, None)
    return config, problems(make_plan(wanted, kind, contents), contents), contents


@pytest.mark.parametrize(
    ("params", "total", "count"), [(PARAMS_12B, 12.68e9, 12_682_739_712), (PARAMS_LARGE, 124e9, None)]
)
def test_native_checkpoints(params: dict[str, Any], total: float, count: int | None) -> None:
    tensors = shapes(params)
    config, found, contents = matched("mistral", params, tensors)
    assert found == []
    assert contents.scheme is names.MISTRAL
    parameters = sum(math.prod(shape) for shape in tensors.values())
    assert parameters == pytest.approx(total, rel=2e-3)
    assert count is None or parameters == count
    assert config.vision_config.hidden_act == "silu"
    assert config.vision_config.head_dim == {1024: 64, 1408: 88}[config.vision_config.hidden_size]
    assert config.multimodal_projector_bias == params["vision_encoder"]["adapter_bias"]
    assert config.image_end_token_id == params["vision_encoder"].get("image_end_token_id")


@pytest.mark.parametrize("style", [style for style in PREFIXES if style != "flat"])
@pytest.mark.parametrize("leave_out", [(), ("head_dim",), ("num_key_value_heads", "head_dim")])
def test_the_hugging_face_12b(style: str, leave_out: tuple[str, ...]) -> None:
    """The published config.json leaves out num_attention_heads (32), and older ones head_dim (128, not 5120 / 32)."""
    ours = {name: names.MISTRAL.canonical(name) for name in shapes(PARAMS_12B)}
    tensors = {prefixed(ours[name] or "", style): shape for name, shape in shapes(PARAMS_12B).items()}
    text = {key: value for key, value in CONFIG_12B["text_config"].items() if key not in leave_out}
    config, found, _ = matched("hf", {**CONFIG_12B, "text_config": text}, tensors)
    assert found == []
    assert config.text_config.head_dim == 128
    assert config.multimodal_projector_bias


def test_a_large_model_in_hugging_face_layout_needs_no_word_on_its_bias() -> None:
    raw = {
        **CONFIG_12B,
        "text_config": {
            **CONFIG_12B["text_config"],
            "hidden_size": 12288,
            "intermediate_size": 28672,
            "num_hidden_layers": 88,
            "num_attention_heads": 96,
            "vocab_size": 32768,
        },
        "vision_config": {
            **CONFIG_12B["vision_config"],
            "hidden_size": 1408,
            "intermediate_size": 6144,
            "num_hidden_layers": 40,
            "head_dim": 88,
        },
    }
    native = shapes(PARAMS_LARGE)
    ours = {name: names.MISTRAL.canonical(name) for name in native}
    config, found, _ = matched("hf", raw, {prefixed(ours[n] or "", "classic"): shape for n, shape in native.items()})
    assert found == []
    assert config.multimodal_projector_bias is False


def test_the_two_ways_of_naming_agree() -> None:
    for name in shapes(PARAMS_12B):
        assert native_name(names.MISTRAL.canonical(name) or "") == name
