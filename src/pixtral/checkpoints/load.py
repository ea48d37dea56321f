"""A folder or Hub id to a model: built on `meta`, filled tensor by tensor, every parameter exactly once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pixtral.checkpoints import names
from pixtral.checkpoints.config import Kind, kind_of, narrow, read_raw, settle_head_dim, whole_config
from pixtral.checkpoints.empty import build_empty
from pixtral.checkpoints.layout import Layout, fetch
from pixtral.checkpoints.memory import check_fits
from pixtral.checkpoints.placement import COMPUTE_DTYPES, DeviceMap, parse_device, parse_dtype
from pixtral.checkpoints.plan import Contents, Plan, make_plan, read_contents, refuse, weight_files
from pixtral.checkpoints.progress import byte_bar
from pixtral.checkpoints.tensors import TensorInfo, read_tensor
from pixtral.configuration import Config, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import CheckpointError

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
    layout: Layout = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    progress: bool = True,
) -> M:
    """Read a model; memory never exceeds the model and one tensor.

    Args:
        cls: PixtralVisionModel, MistralForCausalLM or LlavaForConditionalGeneration, or a subclass; the first two also
            read their part of a whole Pixtral.
        path_or_id: a folder, or a Hub id.
        config: used instead of the checkpoint's own; copied.
        dtype: "auto" (what the configuration says, else what most weights are), a torch dtype, or its name.
        device_map: None or "cpu", "auto" (the best single device), "cuda", "cuda:1", a torch.device, {"": device}.
        layout: "auto" (Hugging Face's when both are there), "hf" or "mistral".
        revision, token, cache_dir, local_files_only, force_download: for the Hub, see `hub.resolve`.
        progress: show a bar, if stderr is a terminal.

    Returns:
        The model in evaluation mode, with `loaded_from` set.

    Raises:
        CheckpointError: files, names or shapes do not fit, or there is not enough memory; nothing has been built.
        ConfigError: the configuration, `dtype`, `device_map` or `layout` is not one that can be used.
    """
    kind = kind_of(cls)
    wanted, device = parse_dtype(dtype), parse_device(device_map)
    files = fetch(
        path_or_id,
        layout,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    contents = read_contents(files)
    raw = read_raw(files)
    if config is None:
        config = narrow(whole_config(files, raw, contents.tensors), kind, files.config)
    else:
        config = narrow(copy.deepcopy(config), kind, "config=")
        settle_head_dim(config, contents.tensors)
    model = build_empty(cls, config)
    plan = make_plan(model, kind, contents)
    refuse(plan, contents)
    target = _Target(wanted or _stored_dtype(raw, plan.sources.values()), device)
    heads = _interleaved(kind, plan, contents, config)
    _check_memory(plan, target, heads)
    _record_dtype(config, target.dtype)
    _fill(model, plan, contents, target, heads, progress)
    origin = LoadedFrom(files.folder, files.layout, weight_files(plan), contents.scheme.title, files.also)
    model.loaded_from = origin  # type: ignore[assignment]  # nn.Module takes any attribute
    return model.eval()


def _stored_dtype(raw: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> torch.dtype:
    """What "auto" means: the configuration's dtype, else the one that most stored bytes have."""
    named = raw.get("dtype") or raw.get("torch_dtype")
    if named is not None and named != "auto":
        found = parse_dtype(named)
        assert found is not None
        return found
    sizes: dict[torch.dtype, int] = {}
    for info in tensors:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return most if most in COMPUTE_DTYPES else torch.bfloat16  # stored in 8 bits: nothing computes in that


def _check_memory(plan: Plan, target: _Target, heads: Mapping[str, int]) -> None:
    count = sum(info.numel for name, info in plan.sources.items() if name not in plan.twins)
    extra = _scratch_bytes(plan, target, heads)
    check_fits(count * target.dtype.itemsize, extra, count, target.dtype, target.device)


def _scratch_bytes(plan: Plan, target: _Target, heads: Mapping[str, int]) -> int:
    """The largest tensor that is not read straight into its place; 0 when all are."""
    converted = [info.nbytes for name, info in plan.sources.items() if name in heads or not target.takes(info)]
    return max(converted, default=0)


def _record_dtype(config: Config, dtype: torch.dtype) -> None:
    """Write the dtype that was used into the configuration and its parts."""
    name = str(dtype).removeprefix("torch.")
    for part in [config, *((config.text_config, config.vision_config) if isinstance(config, LlavaConfig) else ())]:
        assert isinstance(part, (LlavaConfig, MistralConfig, PixtralVisionConfig))
        part.dtype = name


def _fill(
    model: nn.Module, plan: Plan, contents: Contents, target: _Target, heads: Mapping[str, int], progress: bool
) -> None:
    """Read every tensor of the plan, in the order of the files, into the model."""
    order = sorted(plan.sources, key=lambda name: (plan.sources[name].file, plan.sources[name].start))
    order.sort(key=lambda name: name in plan.twins)  # what a twin is compared with comes first
    groups = _shared(model)
    # One buffer for all that is not read straight into its place: many short-lived ones would fragment the heap.
    scratch = torch.empty(_scratch_bytes(plan, target, heads), dtype=torch.uint8, device="cpu")
    title = f"Loading weights ({contents.files.layout} layout)"
    with byte_bar(progress, sum(info.nbytes for info in plan.sources.values()), title) as advance:
        for name in order:
            info = plan.sources[name]
            value = _read(info, target, heads.get(name), scratch)
            if name in plan.twins:
                if not torch.equal(value, model.get_parameter(name)):
                    raise CheckpointError(
                        f"the configuration ties {name!r} to {plan.twins[name]!r}, but {contents.files.folder} holds "
                        "different values for them; set tie_word_embeddings to false, or remove one from the files"
                    )
            else:
                for alias in groups[name]:
                    _assign(model, alias, groups[name][0], value)
            del value
            advance(info.nbytes)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, tensor in tensors if tensor.is_meta]
    assert not left, f"left without a value: {left}"


@dataclass(frozen=True)
class _Target:
    """What the tensors of a file become."""

    dtype: torch.dtype
    device: torch.device

    def takes(self, info: TensorInfo) -> bool:
        """Whether a stored tensor can be used as it is."""
        return info.dtype == self.dtype and self.device.type == "cpu"


def _read(info: TensorInfo, target: _Target, heads: int | None, scratch: Tensor) -> Tensor:
    """One parameter; `heads` is given when its rows are in interleaved rotary order and have to be moved."""
    if heads is None and target.takes(info):
        return read_tensor(info)
    stored = read_tensor(info, scratch)
    value = torch.empty(info.shape, dtype=target.dtype, device=target.device)
    if heads is None:
        return value.copy_(stored)
    moved = names.half_split_view(stored, heads)
    value.view(moved.shape).copy_(moved)
    return value


def _interleaved(kind: Kind, plan: Plan, contents: Contents, config: Config) -> dict[str, int]:
    """Parameter -> heads, for those whose rows lie in Mistral's rotary order."""
    if not contents.scheme.native:
        return {}
    counts = head_counts(config)
    found = {name: names.rotary_heads(kind.own.canonical(name) or name, *counts) for name in plan.sources}
    return {name: heads for name, heads in found.items() if heads is not None}


def head_counts(config: Config) -> tuple[int, int, int]:
    """Heads of the tower, query heads and key heads of the decoder; 0 for a part that there is not."""
    vision = config.vision_config if isinstance(config, LlavaConfig) else config
    text = config.text_config if isinstance(config, LlavaConfig) else config
    tower = vision.num_attention_heads if isinstance(vision, PixtralVisionConfig) else 0
    if isinstance(text, MistralConfig):
        return tower, text.num_attention_heads, text.num_key_value_heads
    return tower, 0, 0


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """Parameter name -> all names of the same parameter."""
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    return {name: group for group in same.values() for name in group}


def _assign(model: nn.Module, name: str, first: str, value: Tensor) -> None:
    """Put a value in the place of a meta parameter; tied names share one Parameter."""
    path, _, leaf = name.rpartition(".")
    old = model.get_parameter(name)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if name == first else model.get_parameter(first)
    model.get_submodule(path).register_parameter(leaf, new)
