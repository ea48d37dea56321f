"""Which files of a folder make up a checkpoint: Hugging Face's layout or Mistral's, in one file or in shards."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pixtral.errors import CheckpointError, ConfigError, listed
from pixtral.hub import listing, resolve

Layout = Literal["auto", "hf", "mistral"]

_log = logging.getLogger("pixtral")
_STEMS = {"hf": "model", "mistral": "consolidated"}
_CONFIGS = {"hf": "config.json", "mistral": "params.json"}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SMALL = ("config.json", "params.json", "generation_config.json", "*.safetensors.index.json")


@dataclass(frozen=True)
class Files:
    """The files of one checkpoint, in one layout.

    Args:
        folder: where they are.
        layout: "hf" (config.json, model*.safetensors) or "mistral" (params.json, consolidated*.safetensors).
        config: config.json or params.json.
        weights: the safetensors files, each there, sorted by name.
        promised: names of tensors in the shard index; empty without one.
        also: the layout that is complete in the folder as well and is not read.
    """

    folder: Path
    layout: str
    config: Path
    weights: tuple[Path, ...]
    promised: frozenset[str] = frozenset()
    also: str | None = None


def fetch(
    path_or_id: str | os.PathLike[str],
    layout: Layout = "auto",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Files:
    """The checkpoint files of a folder or Hub id; of the Hub, only one layout's weights are downloaded.

    Raises:
        CheckpointError: nothing there, or something missing (see `find`).
    """
    _check_layout(layout)

    def get(patterns: Sequence[str]) -> Path:
        return resolve(
            path_or_id,
            patterns=patterns,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )

    if Path(path_or_id).expanduser().is_dir():
        return find(get(_SMALL), layout)
    folder = get(_SMALL)
    for kind in _STEMS if layout == "auto" else (layout,):
        if (folder / _CONFIGS[kind]).exists():
            folder = get((*_SMALL, f"{_STEMS[kind]}*.safetensors"))
            if _has_weights(folder, kind):
                break
    return find(folder, layout)


def find(folder: Path, layout: Layout = "auto") -> Files:
    """The checkpoint files of a local folder; Hugging Face's layout is preferred when both are there.

    Raises:
        CheckpointError: no weights, only pickles, no configuration, a missing shard, or a broken index; the message
            lists what was found and what to do.
    """
    _check_layout(layout)
    asked = list(_STEMS) if layout == "auto" else [layout]
    weighty = [kind for kind in asked if _has_weights(folder, kind)]
    kinds = [kind for kind in weighty if (folder / _CONFIGS[kind]).is_file()] or weighty
    if not kinds:
        raise CheckpointError(_nothing_here(folder, layout))
    kind = kinds[0]
    also = next((other for other in kinds[1:]), None)
    config = folder / _CONFIGS[kind]
    if not config.is_file():
        other = next((name for name in _CONFIGS.values() if (folder / name).is_file()), None)
        raise CheckpointError(
            f"{folder} holds {_STEMS[kind]}*.safetensors but no {config.name}"
            + (f" (there is {other}, of the other layout)" if other else "")
            + f"; put the model's {config.name} beside its weights. Found there: {listing(folder, 8)}"
        )
    weights, promised = _weights(folder, kind, also)
    if also:
        _log.info("%s holds two layouts; reading %r and leaving %r (layout= chooses)", folder, kind, also)
    else:
        _log.info("reading layout %r from %s", kind, folder)
    return Files(folder, kind, config, weights, promised, also)


def weight_names(folder: Path, kind: str) -> list[str]:
    """Names of a folder's weight files and shard index of one layout, whole or not."""
    index = folder / f"{_STEMS[kind]}.safetensors.index.json"
    return [path.name for path in [*_candidates(folder, _STEMS[kind]), index] if path.is_file()]


def _check_layout(layout: str) -> None:
    if layout not in ("auto", *_STEMS):
        raise ConfigError(f"layout is {layout!r}; expected 'auto', 'hf' or 'mistral'")


def _has_weights(folder: Path, kind: str) -> bool:
    return bool(weight_names(folder, kind))


def _candidates(folder: Path, stem: str) -> list[Path]:
    """`stem.safetensors` and its shards; not other files that merely begin alike, such as model_lora.safetensors."""
    shards = [path for path in folder.glob(f"{stem}-*.safetensors") if _SHARD.fullmatch(path.name[len(stem) :])]
    return sorted(path for path in [folder / f"{stem}.safetensors", *shards] if path.is_file())


def _weights(folder: Path, kind: str, also: str | None) -> tuple[tuple[Path, ...], frozenset[str]]:
    """The weight files of a layout and the names its index promises."""
    stem = _STEMS[kind]
    hint = f"; or pass layout={also!r}, which is here too" if also else ""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():  # as transformers: a whole file wins over shards
        return (single,), frozenset()
    if index.is_file():
        where = _read_index(index)
        names = sorted(set(where.values()))
        promised = frozenset(where)
    else:
        shards = _candidates(folder, stem)
        totals = {path.name.rpartition("-of-")[2] for path in shards}
        if len(totals) > 1:
            raise CheckpointError(
                f"{folder} mixes shards of different counts ({', '.join(path.name for path in shards)}) and has no "
                f"{index.name}; keep the shards of one checkpoint"
            )
        suffix = totals.pop()
        count = int(suffix.partition(".")[0])
        names = [f"{stem}-{number:05d}-of-{suffix}" for number in range(1, count + 1)]
        promised = frozenset()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files: {listed(missing)}; "
            f"fetch what is missing{hint}. Found there: {listing(folder, 8)}"
        )
    return tuple(folder / name for name in names), promised


def _read_index(index: Path) -> dict[str, str]:
    """`weight_map` of a shard index: parameter name -> file name."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not a shard index ({error!r}); fetch it again") from error
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"{index} has no usable weight_map (name -> file); fetch it again")
    for name in where.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}; expected safetensors files in the same folder")
    return where


def _nothing_here(folder: Path, layout: str) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    expected = " or ".join(
        f"{_CONFIGS[kind]} with {_STEMS[kind]}.safetensors (or its shards)"
        for kind in (_STEMS if layout == "auto" else (layout,))
    )
    if pickles:
        return (
            f"{folder} has weights only as pickles ({listed(pickles)}), which can run code when read and are never "
            f"opened; convert them to safetensors (load and save_pretrained with Transformers). Expected {expected}"
        )
    return f"no weights in {folder}; expected {expected}. Found there: {listing(folder, 8)}"
