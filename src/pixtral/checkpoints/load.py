"""load_model: a folder or Hub id to a model, built on `meta` and filled tensor by tensor, every parameter once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pixtral.checkpoints.config import kind_of
from pixtral.checkpoints.fill import Target, fill, written_bytes
from pixtral.checkpoints.fitting import check_memory, choose_placement
from pixtral.checkpoints.layout import Layout, fetch
from pixtral.checkpoints.offload import Offloaded, attach
from pixtral.checkpoints.opening import open_checkpoint
from pixtral.checkpoints.placement import DeviceMap, MaxMemory, parse_dtype, parse_placement_options
from pixtral.checkpoints.plan import refuse, weight_files
from pixtral.configuration import Config, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.quantization import QuantizationArguments

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoadedFrom:
    """Where a model's weights came from; `model.loaded_from` of every loaded model.

    Args:
        folder: the local folder.
        layout: "hf" or "mistral": the one that was read.
        files: the weight files that were read.
        naming: how they spell the parameters' names.
        also: the other layout, when it was there too and was not read.
    """

    folder: Path
    layout: str
    files: tuple[Path, ...]
    naming: str
    also: str | None


def load_model(
    cls: type[M],
    path_or_id: str | os.PathLike[str],
    *,
    config: Config | None = None,
    dtype: str | torch.dtype | None = "auto",
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: str | os.PathLike[str] | None = None,
    asked: QuantizationArguments | None = None,
    layout: Layout = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    progress: bool = True,
) -> M:
    """Read a model; memory never exceeds the model and one tensor (of a layer that is quantized, a part of one).

    Args:
        cls: PixtralVisionModel, MistralForCausalLM or LlavaForConditionalGeneration, or a subclass; the first two also
            read their part of a whole Pixtral.
        path_or_id: a folder, or a Hub id.
        config: used instead of the checkpoint's own; copied.
        dtype: "auto" (the configuration's, else that of most weights), a torch dtype, or its name.
        device_map: None or "cpu", a device, "auto", "balanced", "balanced_low_0", "sequential", or a dict of module
            names ("" for the rest) to devices, "cpu" and "disk".
        max_memory: what "auto" and its like may use: {0: "10GiB", "cpu": "30GiB"}.
        offload_folder: for what is kept on the disk and does not lie in the checkpoint as it is used.
        asked: quantization arguments; the checkpoint's configuration if left out.
        layout: "auto" (Hugging Face's when both are there), "hf" or "mistral".
        revision, token, cache_dir, local_files_only, force_download: for the Hub, see `hub.resolve`.
        progress: show a bar, if stderr is a terminal.

    Returns:
        The model in evaluation mode, with `loaded_from` and `quantizer` set.

    Raises:
        CheckpointError: files, names or shapes do not fit, or there is not enough memory; nothing has been built.
        ConfigError: the configuration, `dtype`, `device_map` or `layout` is not one that can be used.
    """
    kind_of(cls)  # refuses other classes before anything is fetched
    wanted, options = parse_dtype(dtype), parse_placement_options(device_map, max_memory, offload_folder)
    files = fetch(
        path_or_id,
        layout,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    offloaded_modules = tuple(name for name, place in options.devices.items() if place in ("cpu", "disk"))
    found = open_checkpoint(files, cls, config=config, dtype=wanted, asked=asked, offloaded=offloaded_modules)
    refuse(found.plan, found.contents)
    placement, offloaded = choose_placement(found, options), Offloaded(options.offload_folder)
    target = Target(found.dtype, placement, offloaded, found.heads, found.quantizer)
    check_memory(found, target, options)
    offloaded.check_room(written_bytes(found.plan, target))
    _record(found.config, target)
    fill(found.model, found.plan, found.contents, target, progress)
    scheme = found.contents.scheme.title
    model = found.model
    model.loaded_from = LoadedFrom(files.folder, files.layout, weight_files(found.plan), scheme, files.also)  # type: ignore[assignment]
    model.quantizer = found.quantizer  # type: ignore[assignment]  # nn.Module takes any attribute
    if placement.spread:
        attach(model, placement, offloaded)
    if device_map is not None:
        model.hf_device_map = dict(placement.devices)  # type: ignore[assignment]
    assert isinstance(model, cls)
    return model.eval()


def _record(config: Config, target: Target) -> None:
    """Write what was used into the configuration: the dtype, in its parts too, and the quantization."""
    name = str(target.dtype).removeprefix("torch.")
    for part in [config, *((config.text_config, config.vision_config) if isinstance(config, LlavaConfig) else ())]:
        assert isinstance(part, (LlavaConfig, MistralConfig, PixtralVisionConfig))
        part.dtype = name
    assert isinstance(config, (LlavaConfig, MistralConfig, PixtralVisionConfig))
    config.quantization_config = None if target.quantizer is None else target.quantizer.to_dict()
