"""Saving a model in either layout: in shards, one tensor in memory at a time, and atomically.

Files are written into a temporary folder, so that a run that fails or is killed leaves no incomplete checkpoint.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch
from torch import Tensor, nn

from pixtral.checkpoints import names
from pixtral.checkpoints.config import LLAVA, Kind, kind_of
from pixtral.checkpoints.layout import weight_names
from pixtral.checkpoints.memory import gigabytes, parse_bytes
from pixtral.checkpoints.offload import Offloaded
from pixtral.checkpoints.opening import head_counts
from pixtral.checkpoints.safetensors_io import DTYPES, aligned, write_file
from pixtral.configuration import Config, GenerationConfig, LlavaConfig, MistralConfig
from pixtral.errors import CheckpointError, ConfigError
from pixtral.hub import saving
from pixtral.quantization import Quantizer

Shapes: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
_Fetch: TypeAlias = dict[str, Callable[[], Tensor]]
_LOCK = ".lock"
_STEMS = {"hf": "model", "mistral": "consolidated"}


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    layout: str = "hf",
    max_shard_size: int | str = "5GB",
) -> tuple[Path, ...]:
    """Write a model so that this package and Transformers ("hf") or Mistral's programs ("mistral") can read it.

    Quantized weights are written as they are; only this package reads them.

    Everything is first written under a temporary name in the folder; a failure leaves the folder as it was. Weights of
    an earlier save in the same layout are replaced, other files stay.

    Args:
        model: one of the three models.
        folder: created if needed.
        layout: "hf": config.json, model*.safetensors; "mistral": params.json, consolidated*.safetensors.
        max_shard_size: bytes, or "5GB", "500MB", "2GiB"; a single tensor is never split.

    Returns:
        The files written.

    Raises:
        CheckpointError: nowhere to write, no room, or a parameter that the layout has no name for.
        ConfigError: the layout cannot express this network or its quantization, or an argument is not understood.
    """
    if layout not in _STEMS:
        raise ConfigError(f"layout is {layout!r}; expected 'hf' or 'mistral'")
    kind, config, limit = kind_of(type(model)), _config_of(model), parse_bytes(max_shard_size, "max_shard_size")
    if layout == "mistral" and kind is not LLAVA:
        raise ConfigError(f"Mistral's layout holds a whole Pixtral, not {kind.parts} alone; save it with layout='hf'")
    quantizer = _quantizer(model)
    if quantizer is not None and layout == "mistral":
        raise ConfigError("quantized weights have no form in Mistral's layout; save them with layout='hf'")
    parameters, elsewhere = _spelled(model, kind, config, layout)
    if quantizer is not None:  # so that they can be mapped when they are loaded
        order = aligned({name: (value.dtype, tuple(value.shape)) for name, value in parameters.items()})
        parameters = {name: parameters[name] for name in order}
    files = {_config_name(layout): _config_json(model, kind, config, layout)}
    generation = getattr(model, "generation_config", None)
    if isinstance(generation, GenerationConfig):
        known = {key: value for key, value in generation.to_dict().items() if value is not None}
        files["generation_config.json"] = json.dumps(known, indent=2) + "\n"
    need = sum(p.numel() * p.element_size() for p in parameters.values())
    with saving(folder) as target:
        check_room(target, need)
        with staging(target / ".saving") as place:
            heads = head_counts(config) if layout == "mistral" else None
            weights = _write_weights(place.folder, parameters, elsewhere, _STEMS[layout], limit, heads)
            for name, text in files.items():
                (place.folder / name).write_text(text, encoding="utf-8")
            return _publish(place.folder, target, weights, list(files), layout)


def config_json(kind: Kind, config: Config, dtype: torch.dtype, quantizer: Quantizer | None) -> str:
    """The content of config.json."""
    name = str(dtype).removeprefix("torch.")
    values: dict[str, Any] = {**config.to_dict(), "architectures": [kind.architecture], "dtype": name}
    for part in ("text_config", "vision_config"):
        if part in values:
            values[part]["dtype"] = name
    values.pop("quantization_config", None)
    if quantizer is not None:
        values["quantization_config"] = quantizer.to_dict()
    return json.dumps(values, indent=2) + "\n"


def total_bytes(shapes: Shapes) -> int:
    """Of all tensors."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def plan_shards(shapes: Shapes, stem: str, limit: int) -> dict[str, list[str]]:
    """File name -> the tensors in it, in their order; a file is larger than the limit only for a single tensor."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in shapes:
        nbytes = total_bytes({name: shapes[name]})
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    count = len(groups)
    return {f"{stem}-{number:05d}-of-{count:05d}.safetensors": group for number, group in enumerate(groups, 1)}


def write_index(folder: Path, stem: str, shards: Mapping[str, list[str]], shapes: Shapes) -> list[str]:
    """Write the index of several shards; its name in a list, which is empty for a single file."""
    if len(shards) == 1:
        return []
    where = {name: file for file, group in shards.items() for name in group}
    index = {"metadata": {"total_size": total_bytes(shapes)}, "weight_map": dict(sorted(where.items()))}
    file = f"{stem}.safetensors.index.json"
    (folder / file).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [file]


class Staging:
    """A folder to write into; its finished files are moved out one by one, or all together by `become`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moved = False

    def become(self, target: Path) -> None:
        """Rename to a folder that does not exist or is empty; atomic."""
        (self.folder / _LOCK).unlink()
        os.replace(self.folder, target)
        self.moved = True


@contextmanager
def staging(folder: Path) -> Iterator[Staging]:
    """A folder to write into that is removed at the end, unless it was renamed.

    What a killed run left there is removed first.

    Raises:
        CheckpointError: another process is writing there.
    """
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        _claim(lock, folder)
        made = Staging(folder)
        try:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    path.unlink()
            yield made
        finally:
            if not made.moved:
                shutil.rmtree(folder, ignore_errors=True)


def check_room(folder: Path, need: int) -> None:
    """Raise CheckpointError unless `need` bytes are free in a folder."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CheckpointError(f"{folder} has {gigabytes(free)} free, the model takes {gigabytes(need)}; make room")


def _config_of(model: nn.Module) -> Config:
    config = model.config
    assert isinstance(config, Config)
    return config


def _spelled(model: nn.Module, kind: Kind, config: Config, layout: str) -> tuple[dict[str, Tensor], _Fetch]:
    """Name in the file -> parameter, tied ones once; and -> a function that reads it, if it is offloaded."""
    scheme = names.MISTRAL if layout == "mistral" else kind.published
    tied = isinstance(config, (LlavaConfig, MistralConfig)) and config.tie_word_embeddings
    spelled: dict[str, Tensor] = {}
    elsewhere: _Fetch = {}
    offloaded = getattr(model, "offloaded", None)
    assert offloaded is None or isinstance(offloaded, Offloaded)
    quantizer = _quantizer(model)
    suffixes = () if quantizer is None else quantizer.suffixes
    for name, parameter in _tensors(model, quantizer).items():
        canonical = kind.own.canonical_stored(name, suffixes)
        stored = None if canonical is None else scheme.spell_stored(canonical, suffixes)
        if canonical is None or stored is None:
            raise CheckpointError(
                f"parameter {name!r} has no name in the {layout!r} layout; remove or merge what was added to the model"
            )
        if parameter.is_meta and offloaded is not None and name in offloaded:
            fetch: Callable[[], Tensor] | None = functools.partial(offloaded.__getitem__, name)
        else:
            fetch = None
        if (parameter.is_meta and fetch is None) or parameter.dtype not in DTYPES.values():
            raise CheckpointError(f"parameter {name!r} is {parameter.dtype} on {parameter.device}; it cannot be saved")
        if tied and canonical == "lm_head.weight":
            _check_tie(model, parameter)
            continue
        spelled[stored] = parameter
        if fetch is not None:
            elsewhere[stored] = fetch
    return spelled, elsewhere


def _quantizer(model: nn.Module) -> Quantizer | None:
    found = getattr(model, "quantizer", None)
    assert found is None or isinstance(found, Quantizer)
    return found


def _tensors(model: nn.Module, quantizer: Quantizer | None) -> dict[str, Tensor]:
    """Everything to be stored, by its name in the model: parameters, and what a quantizer makes of its layers."""
    layers = {} if quantizer is None else {name: model.get_submodule(name) for name in quantizer.names}
    found = {
        name: parameter.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[0] not in layers or name.endswith(".bias")
    }
    for layer, module in layers.items():
        assert quantizer is not None
        found |= {f"{layer}.{suffix}": value for suffix, value in quantizer.tensors(module).items()}
    return found


def _check_tie(model: nn.Module, head: Tensor) -> None:
    embeddings = next(p for name, p in model.named_parameters() if name.endswith("embed_tokens.weight"))
    if embeddings.is_meta and head.is_meta:  # on the disk they are one tensor
        return
    if embeddings is not head and not torch.equal(embeddings, head):
        raise CheckpointError(
            "tie_word_embeddings is true, but lm_head.weight differs from the embeddings; set it to false in the config"
        )


def _config_name(layout: str) -> str:
    return "params.json" if layout == "mistral" else "config.json"


def _config_json(model: nn.Module, kind: Kind, config: Config, layout: str) -> str:
    if layout == "mistral":
        assert isinstance(config, LlavaConfig)
        return json.dumps(config.to_params(), indent=2) + "\n"
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return config_json(kind, config, dtype, _quantizer(model))


def _write_weights(
    folder: Path,
    parameters: dict[str, Tensor],
    elsewhere: _Fetch,
    stem: str,
    limit: int,
    heads: tuple[int, int, int] | None,
) -> list[str]:
    """Write the weights into `folder`; the names of the files, the index last."""
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in parameters.items()}
    shards = plan_shards(shapes, stem, limit)
    for file, names_in_it in shards.items():
        values = _values(parameters, elsewhere, names_in_it, heads)
        write_file(folder / file, {name: shapes[name] for name in names_in_it}, values)
    return [*shards, *write_index(folder, stem, shards, shapes)]


def _values(
    parameters: dict[str, Tensor], elsewhere: _Fetch, shard: list[str], heads: tuple[int, int, int] | None
) -> Iterator[Tensor]:
    """The tensors of a shard as they lie in the file; `heads` are given when q and k are stored interleaved."""
    for name in shard:
        value = elsewhere[name]() if name in elsewhere else parameters[name].detach()
        if heads is not None:
            count = names.rotary_heads(names.MISTRAL.canonical(name) or name, *heads)
            value = value if count is None else names.to_interleaved(value.contiguous(), count)
        yield value


def _publish(source: Path, target: Path, weights: list[str], texts: list[str], layout: str) -> tuple[Path, ...]:
    """Move finished files to their names, and remove weights of an earlier save that would be read instead.

    The configuration is removed first and written last: whenever the process is killed, a folder with one is complete.
    """
    (target / _config_name(layout)).unlink(missing_ok=True)
    stale = [name for name in weight_names(target, layout) if name not in weights]
    for name in weights:
        os.replace(source / name, target / name)
    for name in stale:
        (target / name).unlink()
    for name in reversed(texts):
        os.replace(source / name, target / name)
    return tuple(target / name for name in (*weights, *texts))


def _claim(lock: IO[str], folder: Path) -> None:
    """Lock a folder until `lock` is closed or the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are not noticed
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(
            f"another process is writing into {folder}; wait for it, or choose another place"
        ) from error
