"""The files that hold an image processor's options, of every layout in use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixtral import hub
from pixtral.errors import CheckpointError, ConfigError

_PREPROCESSOR, _PROCESSOR, _PARAMS = "preprocessor_config.json", "processor_config.json", "params.json"


def read_image_config(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> dict[str, Any]:
    """The options of a checkpoint's image processor, with Transformers' names.

    Raises:
        CheckpointError: none of the files is there.
        ConfigError: a file is not a JSON object.
    """
    path = Path(os.fspath(path_or_id)).expanduser()
    if path.is_file():
        config = _options_in(path)
        if config is None:
            raise ConfigError(f"{str(path)!r} holds no image processor; expected {_PREPROCESSOR} or a file like it")
        return config
    folder = hub.resolve(
        path_or_id,
        patterns=[_PREPROCESSOR, _PROCESSOR, _PARAMS],
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    for name in (_PROCESSOR, _PREPROCESSOR, _PARAMS):
        if (folder / name).is_file() and (config := _options_in(folder / name)) is not None:
            return config
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{str(folder)!r} has no image processor; looked for {_PREPROCESSOR}, an 'image_processor' in {_PROCESSOR}, "
        f"and {_PARAMS}; found {found}"
    )


def write_image_config(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> str:
    """Write preprocessor_config.json; returns its path."""
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    with hub.saving(folder) as path:
        (path / _PREPROCESSOR).write_text(text + "\n", encoding="utf-8")
    return str(path / _PREPROCESSOR)


def _options_in(path: Path) -> dict[str, Any] | None:
    """The image processor's options in one file, or None when the file is about something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{str(path)!r} holds a {type(config).__name__}; expected a JSON object")
    if "vision_encoder" in config:
        return _from_params(config["vision_encoder"], path)
    if path.name == _PROCESSOR or "image_processor" in config:
        nested = config.get("image_processor")
        return dict(nested) if isinstance(nested, dict) else None
    return None if path.name == _PARAMS else config


def _from_params(vision: object, path: Path) -> dict[str, Any]:
    """Mistral's "vision_encoder": image_size (or max_image_size) and patch_size; merged patches count as one."""
    if not isinstance(vision, dict) or not {"image_size", "patch_size"} <= vision.keys():
        raise ConfigError(f"{str(path)!r}: 'vision_encoder' is {vision!r}; expected image_size and patch_size in it")
    edge = vision.get("max_image_size") or vision["image_size"]
    patch = vision["patch_size"] * (vision.get("spatial_merge_size") or 1)
    return {"size": {"longest_edge": edge}, "patch_size": patch}
