"""Checkpoints in and out: Hugging Face's and Mistral's layouts, exact names, bounded memory."""

from __future__ import annotations

from pixtral.checkpoints.load import LoadedFrom, load_model
from pixtral.checkpoints.report import CheckpointReport, inspect_checkpoint
from pixtral.checkpoints.save import save_model

__all__ = ["CheckpointReport", "LoadedFrom", "inspect_checkpoint", "load_model", "save_model"]
