"""The plan of a load: which tensor of which file fills which parameter, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pixtral.checkpoints import names
from pixtral.checkpoints.config import Kind
from pixtral.checkpoints.layout import Files
from pixtral.checkpoints.names import Scheme
from pixtral.checkpoints.safetensors_io import TensorInfo, read_header
from pixtral.errors import CheckpointError, listed
from pixtral.quantization import Quantizer, Slot

_QUANTIZED = (
    "absmax",
    "quant_map",
    "SCB",
    "qweight",
    "qzeros",
    "scales",
    "weight_scale",
    "qscale_weight",
    "input_scale",
)


@dataclass(frozen=True)
class Contents:
    """Every tensor of a checkpoint under its canonical name.

    Args:
        files: where they come from.
        scheme: how the files spell names.
        tensors: canonical name -> tensor.
        unknown: names that no scheme knows.
        promised: names of the shard index that no file holds.
        suffixes: of what quantized layers store, see `Quantizer.suffixes`.
    """

    files: Files
    scheme: Scheme
    tensors: Mapping[str, TensorInfo]
    unknown: tuple[str, ...]
    promised: tuple[str, ...]
    suffixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What a model on `meta` needs.

    Args:
        slots: name in the model -> what fills it: every parameter, and for a quantized layer what its scheme says.
        tied: name -> the first name of the same tensor (itself, unless tied); as it was before layers were swapped.
        layers: name -> quantized layer.
        owners: name of a slot that a scheme fills -> (name of its layer, the rest of the slot's name).
    """

    slots: Mapping[str, Slot]
    tied: Mapping[str, str]
    layers: Mapping[str, nn.Module]
    owners: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """How a model's parameters are filled.

    Args:
        sources: the model's parameter name -> tensor.
        missing: parameters of the model that no tensor fills.
        unexpected: names in the files that have no place in the network.
        mismatched: (parameter, what the file has, what the model expects).
        tied_copies: tied parameters that the files hold as well: they must be equal to what they are tied to.
        wanted: what the model needed.
    """

    wanted: Wanted
    sources: Mapping[str, TensorInfo]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, str, str], ...]
    tied_copies: Mapping[str, str]


def read_contents(files: Files, suffixes: tuple[str, ...] = ()) -> Contents:
    """The headers of all weight files; `suffixes` are those of what quantized layers store.

    Raises:
        CheckpointError: a broken file, or a tensor that occurs twice.
    """
    stored: dict[str, TensorInfo] = {}
    for file in files.weights:
        for name, info in read_header(file).items():
            if name in stored:
                raise CheckpointError(
                    f"tensor {name!r} is in {stored[name].file.name} and in {file.name} of {files.folder}; "
                    "keep the files of one checkpoint only"
                )
            stored[name] = info
    scheme, canonical = names.canonical_names(stored, suffixes)
    tensors: dict[str, TensorInfo] = {}
    for name, ours in canonical.items():
        if ours is None:
            continue
        if ours in tensors:
            raise CheckpointError(
                f"{files.folder} holds one parameter under two names, {tensors[ours].name!r} and {name!r}; keep one"
            )
        tensors[ours] = stored[name]
    unknown = tuple(name for name, ours in canonical.items() if ours is None and not names.is_derived(name))
    return Contents(files, scheme, tensors, unknown, tuple(sorted(files.promised - stored.keys())), suffixes)


def announce(quantizer: Quantizer | None, kind: Kind, contents: Contents) -> None:
    """Tell the quantizer of a stored model the names of its tensors; call it before `wanted_by`."""
    if quantizer is not None and quantizer.stored:
        quantizer.found([kind.own.spell_stored(name, contents.suffixes) or name for name in contents.tensors])


def wanted_by(model: nn.Module, dtype: torch.dtype, quantizer: Quantizer | None) -> Wanted:
    """What a model on `meta` needs, after the quantizer has swapped its layers."""
    tied = {name: group[0] for name, group in names.tied_groups(model).items()}
    layers = {} if quantizer is None else quantizer.swap(model, dtype)
    if quantizer is not None:
        quantizer.names = tuple(layers)
    slots: dict[str, Slot] = {}
    owners: dict[str, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer, _, leaf = name.rpartition(".")
        if layer not in layers or leaf == "bias":
            slots[name] = Slot(tuple(parameter.shape))
    for layer, module in layers.items():
        assert quantizer is not None
        for suffix, slot in quantizer.slots(module).items():
            slots[f"{layer}.{suffix}"] = slot
            owners[f"{layer}.{suffix}"] = (layer, suffix)
    return Wanted(slots, tied, layers, owners)


def make_plan(wanted: Wanted, kind: Kind, contents: Contents) -> Plan:
    """Match what a model needs with a checkpoint's tensors; what does not fit is for `refuse`."""
    slots, tied = wanted.slots, wanted.tied
    sources: dict[str, TensorInfo] = {}
    surplus = list(contents.unknown)
    for ours, info in contents.tensors.items():
        name = kind.own.spell_stored(ours, contents.suffixes)
        if name is not None and name in slots:
            sources[name] = info
        elif name is not None:  # a part of this network, but for example one layer too many
            surplus.append(info.name)
    mismatched = [
        (name, f"{list(info.shape)} {_short(info.dtype)}", str(slots[name]))
        for name, info in sources.items()
        if not slots[name].takes(info.shape, info.dtype)
    ]
    tied_copies = {name: first for name, first in tied.items() if name != first and {name, first} <= sources.keys()}
    for name, first in tied.items():  # one tensor in the files fills both, and a quantized layer makes a copy of it
        for one, other in ((name, first), (first, name)):
            if name != first and name in wanted.owners and one not in sources and other in sources:
                sources[one] = sources[other]
    filled = {tied.get(name, name) for name in sources}
    missing = [
        name
        for name, slot in slots.items()
        if not slot.optional
        and (name not in sources if name in wanted.owners else tied[name] == name and name not in filled)
    ]
    return Plan(wanted, sources, tuple(missing), tuple(surplus), tuple(mismatched), tied_copies)


def problems(plan: Plan, contents: Contents) -> list[str]:
    """Why the tensors do not fill the model exactly once; empty when they do."""
    found = []
    if plan.missing:
        found.append(f"{len(plan.missing)} parameters missing ({listed(plan.missing)})")
    if plan.unexpected:
        found.append(f"{len(plan.unexpected)} unexpected names ({listed(plan.unexpected)})")
    if plan.mismatched:
        shapes = [f"{name}: found {there}, expected {expected}" for name, there, expected in plan.mismatched]
        found.append(f"{len(shapes)} of another shape or kind ({listed(shapes, separator='; ')})")
    if contents.promised:
        found.append(f"{len(contents.promised)} names of the index are in no file ({listed(contents.promised)})")
    return found


def refuse(plan: Plan, contents: Contents) -> None:
    """Raise CheckpointError unless every parameter is filled exactly once."""
    found = problems(plan, contents)
    if found:
        files = contents.files
        raise CheckpointError(
            f"{files.folder} ({files.layout} layout) does not fit its {files.config.name}: {'; '.join(found)}. "
            f"{advice(plan, contents)} Files read: {listed([file.name for file in files.weights])}"
        )


def weight_files(plan: Plan) -> tuple[Path, ...]:
    """The files that the plan reads from."""
    return tuple(sorted({info.file for info in plan.sources.values()}))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def advice(plan: Plan, contents: Contents) -> str:
    """What to do about the problems."""
    if any(name.rpartition(".")[2] in _QUANTIZED for name in plan.unexpected):
        return "The extra names look like a quantized checkpoint: use the one in bfloat16."
    odd = {*plan.missing, *(name for name, _, _ in plan.mismatched)}
    if contents.suffixes and not odd.isdisjoint(plan.wanted.owners):
        return (
            "The quantized weights are not whole, or not what quantization_config says: fetch them again, or quantize "
            "the original checkpoint."
        )
    if contents.promised:
        return "The files are not the ones the index was written for: fetch them again."
    if plan.missing == ("lm_head.weight",):
        return "If input and output embeddings are one tensor, set tie_word_embeddings to true in the configuration."
    if any(".q_proj." in name or ".o_proj." in name for name, _, _ in plan.mismatched):
        return "Check head_dim, num_attention_heads and hidden_size in the configuration."
    if plan.missing and plan.unexpected and not plan.sources:
        return "No name is one that Pixtral's checkpoints use: this is another model."
    if plan.mismatched:
        return "Configuration and weights are of different models: fetch both from one place."
    return "Check the number of layers in the configuration, and that all files come from one checkpoint."
