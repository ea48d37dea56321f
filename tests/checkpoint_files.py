"""Checkpoints to break: folders in every layout, written independently of the package with the safetensors library."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import llava_dict, random_llava
from safetensors.torch import save_file
from torch import Tensor

REPLACE = (
    ("model.vision_tower.", "vision_encoder."),
    ("model.multi_modal_projector.linear_1", "vision_language_adapter.w_in"),
    ("model.multi_modal_projector.linear_2", "vision_language_adapter.w_out"),
    ("model.language_model.embed_tokens", "tok_embeddings"),
    ("model.language_model.", ""),
    ("lm_head", "output"),
    ("self_attn.", "attention."),
    ("mlp.", "feed_forward."),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    *((f".{letter}_proj.", f".w{letter}.") for letter in "qkvo"),
    (".gate_proj.", ".w1."),
    (".down_proj.", ".w2."),
    (".up_proj.", ".w3."),
)
PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "nested": (),
    "classic": (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "flat": (
        ("model.language_model.", "language_model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "mixed": (("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower.")),
}


def native_name(name: str) -> str:
    """Mistral's name of a parameter of LlavaForConditionalGeneration, by replacing one piece after the other."""
    for ours, native in REPLACE:
        name = name.replace(ours, native)
    return name


def prefixed(name: str, style: str) -> str:
    """The name under one of Hugging Face's prefixes."""
    for ours, theirs in PREFIXES[style]:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Half-split rotary rows to interleaved ones, row by row."""
    half = weight.shape[0] // heads // 2
    rows = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
    return weight[rows]


def native_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of consolidated.safetensors for a network's state_dict and its config.json."""
    text, vision = config["text_config"], config["vision_config"]
    result = {}
    for name, value in state.items():
        heads = vision if "vision_tower" in name else text
        if name.endswith("q_proj.weight"):
            value = interleave(value, heads["num_attention_heads"])
        if name.endswith("k_proj.weight"):
            value = interleave(value, heads.get("num_key_value_heads", heads["num_attention_heads"]))
        result[native_name(name)] = value
    return result


def params_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The params.json of a network's config.json."""
    text, vision = config["text_config"], config["vision_config"]
    tower = {key: value for key, value in vision.items() if key not in ("model_type", "hidden_act")}
    return {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"],
        "head_dim": text["head_dim"],
        "hidden_dim": text["intermediate_size"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "rope_theta": text["rope_theta"],
        "norm_eps": text["rms_norm_eps"],
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["max_position_embeddings"],
        "vision_encoder": {
            **tower,
            "adapter_bias": config["multimodal_projector_bias"],
            "image_token_id": config["image_token_index"],
        },
    }


def write_weights(folder: Path, state: Mapping[str, Tensor], stem: str, shards: int = 1, index: bool = True) -> None:
    """stem.safetensors, or that many shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    if shards == 1:
        save_file({name: state[name].contiguous() for name in names}, folder / f"{stem}.safetensors")
        return
    size = math.ceil(len(names) / shards)
    where = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * size : (number + 1) * size]
        save_file({name: state[name].contiguous() for name in part}, folder / file)
        where.update(dict.fromkeys(part, file))
    if index:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_hf(
    folder: Path, style: str = "classic", *, shards: int = 1, index: bool = True, config: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """A random network in Hugging Face's layout; returns its state_dict."""
    config = copy.deepcopy(config or llava_dict())
    state = random_llava(config).state_dict()
    if config["tie_word_embeddings"] or config["text_config"].get("tie_word_embeddings"):
        del state["lm_head.weight"]
    write_weights(folder, {prefixed(name, style): value for name, value in state.items()}, "model", shards, index)
    (folder / "config.json").write_text(json.dumps(config))
    return state


def write_mistral(folder: Path, *, shards: int = 1, config: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """A random network in Mistral's layout; returns its state_dict (in our rotary order)."""
    config = copy.deepcopy(config or llava_dict())
    state = random_llava(config).state_dict()
    write_weights(folder, native_state(state, config), "consolidated", shards)
    (folder / "params.json").write_text(json.dumps(params_json(config)))
    return state


def assert_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and bit for bit the same tensors."""
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Let huggingface_hub talk to this address and keep its files in this folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def fake_hub(folder: Path, repo: str = "team/model", error: str = "") -> Iterator[tuple[str, list[str]]]:
    """A Hugging Face Hub on loopback that serves a folder as one repository; gives its address and what was fetched.

    `error` is the X-Error-Code with which every request is refused.
    """
    asked: list[str] = []
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": commit, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            files = {file.name: file for file in folder.iterdir()}
            if error or f"/{repo}/" not in path:
                self.answer(403 if error == "GatedRepo" else 404, b"{}", X_Error_Code=error or "RepoNotFound")
            elif "/tree/" in path:
                rows = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}
                    for name, file in sorted(files.items())
                ]
                self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")
            elif "/revision/" in path:
                body = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
            else:
                name = path.rpartition("/")[2]
                if self.command == "GET":
                    asked.append(name)
                self.answer(200, files[name].read_bytes(), ETag=f'"{name}"')

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
