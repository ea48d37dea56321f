"""Export a training run to the shipped folder: bfloat16 weights in both layouts, tokenizer, templates, settings."""

from __future__ import annotations

import copy
import json
import pathlib

import torch
from torch import nn

from pixtral.checkpoints.save import save_model
from pixtral.training.batches import BOS, EOS
from pixtral.training.questions import vocabulary
from pixtral.training.scenes import Scene, Thing
from pixtral.training.tiny_tokenizer import SPECIAL_TOKENS, write_tokenizer

LARGEST_FOLDER = 12_000_000
"""Bytes that the embedded model may take, everything included."""


def export(model: nn.Module, folder: pathlib.Path, vocab_size: int) -> dict[str, int]:
    """Write the shipped files into `folder`; returns the size of each in bytes.

    Raises ValueError when they take more than `LARGEST_FOLDER`.
    """
    write_tokenizer(folder, vocabulary(), vocab_size)
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    save_model(rounded, folder, layout="hf")
    save_model(rounded, folder, layout="mistral")
    settings = {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
        "do_sample": False,
        "max_new_tokens": 48,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if sum(sizes.values()) > LARGEST_FOLDER:
        raise ValueError(f"found {sum(sizes.values())} bytes in {folder}, expected at most {LARGEST_FOLDER}: shrink it")
    return sizes


def demo_scene() -> Scene:
    """The image of the demonstration: a red circle, a blue square and a green star on a pale ground."""
    things = (
        Thing("red", "circle", 0, 29.0, 26.0, 19.0, 0.0, (210, 36, 40)),
        Thing("blue", "square", 5, 116.0, 58.0, 19.0, 0.12, (40, 80, 210)),
        Thing("green", "star", 7, 70.0, 92.0, 19.0, 0.2, (42, 156, 66)),
    )
    pale = (250, 248, 240)
    return Scene(144, 112, things, (pale, pale), 0.0, 3.0, 7)
