"""inspect_checkpoint: what a checkpoint holds and whether it can be loaded, from its headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pixtral.checkpoints import names
from pixtral.checkpoints.config import KINDS, Kind, Networks, read_raw, stored_quantization, whole_config
from pixtral.checkpoints.layout import Files, Layout, fetch
from pixtral.checkpoints.memory import gigabytes
from pixtral.checkpoints.opening import build_empty
from pixtral.checkpoints.plan import Plan, advice, announce, make_plan, problems, read_contents, wanted_by
from pixtral.checkpoints.safetensors_io import TensorInfo
from pixtral.configuration import Config, LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import CheckpointError, ConfigError, listed
from pixtral.quantization import QuantizationArguments, Quantizer, choose_quantizer

_TITLES = {
    "vision": "vision tower",
    "projector": "projector",
    "embeddings": "embeddings",
    "text": "decoder",
    "head": "output layer",
}


@dataclass(frozen=True)
class QuantizedPart:
    """Layers of one part of the model that hold their weights alike.

    Args:
        part: as in `CheckpointReport.parameters`.
        format: in words: "4 bits, groups of 64".
        layers: how many.
        parameters: weights that they stand for.
        nbytes: that they take, scales included.
    """

    part: str
    format: str
    layers: int
    parameters: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Of one weight, its share of the scales included."""
        return 8 * self.nbytes / self.parameters


@dataclass(frozen=True)
class CheckpointReport:
    """The result of `inspect_checkpoint`; `str()` of it is a page to read.

    Args:
        folder: where the checkpoint is.
        layout: "hf" or "mistral"; None when no weights were found.
        also: another layout that is there and is not read.
        naming: how the files spell parameters' names.
        files: the weight files that are read.
        nbytes: bytes of all tensors.
        parameters: number of parameters by part: vision tower, projector, embeddings, decoder, output layer.
        dtypes: number of parameters by stored dtype, or by the format of quantized layers.
        quantization: what is quantized, and how.
        config: the configuration; None when it cannot be read.
        missing: parameters of the model that no file holds.
        unexpected: names in the files that have no place in the model.
        mismatched: (parameter, found, expected) where shapes differ.
        problems: everything that keeps the checkpoint from being loaded, as sentences.
    """

    folder: Path
    layout: str | None = None
    also: str | None = None
    naming: str | None = None
    files: tuple[Path, ...] = ()
    nbytes: int = 0
    parameters: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    quantization: tuple[QuantizedPart, ...] = ()
    config: Config | None = None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, str, str], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return not self.problems

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(self.parameters.values())

    def summary(self) -> dict[str, object]:
        """The configuration's main numbers, by name; empty when it cannot be read."""
        return _summary(self.config)

    def quantization_facts(self) -> list[dict[str, object]]:
        """`quantization` as plain values."""
        return [{**vars(one), "bits": round(one.bits, 3)} for one in self.quantization]

    def __str__(self) -> str:
        lines = [f"checkpoint   {self.folder}"]
        if self.layout:
            also = f" (the {self.also} layout is there too)" if self.also else ""
            lines.append(f"layout       {self.layout}{also}, names as {self.naming or 'unknown'}")
            size = f"; {gigabytes(self.nbytes)}" if self.nbytes else ""  # unknown when the headers cannot be read
            lines.append(f"files        {listed([file.name for file in self.files])}{size}")
        if self.parameters:
            lines.append(f"parameters   {self.total:,}")
            lines += [f"  {part:<14}{count:>16,}" for part, count in self.parameters.items()]
            lines.append("stored as    " + ", ".join(f"{name} ({count:,})" for name, count in self.dtypes.items()))
        lines += [
            f"quantized    {one.part}: {one.layers} layers in {one.format}, {one.bits:.2f} bits a weight in all"
            for one in self.quantization
        ]
        lines += [f"{name:<12} {value}" for name, value in self.summary().items()]
        lines += [f"problem      {problem}" for problem in self.problems] or ["ok           can be loaded"]
        return "\n".join(lines)


def inspect_checkpoint(
    path_or_id: str | os.PathLike[str],
    networks: Networks,
    *,
    layout: Layout = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> CheckpointReport:
    """Look at a checkpoint without reading its tensors; problems are reported, not raised.

    Args:
        path_or_id: a folder, or a Hub id (whose files are fetched as for loading).
        networks: class of each architecture.
        layout: which layout to look at, as for loading.
        revision, token, cache_dir, local_files_only: for the Hub.

    Raises:
        CheckpointError: there is no such folder or model at all.
    """
    try:
        files = fetch(
            path_or_id,
            layout,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except CheckpointError as error:
        folder = Path(path_or_id).expanduser()
        if not folder.is_dir():
            raise
        return CheckpointReport(folder, problems=(str(error),))
    return _report(files, networks)


def _report(files: Files, networks: Networks) -> CheckpointReport:
    base = CheckpointReport(files.folder, files.layout, files.also, files=files.weights)
    quantizer, refusal = _stored_quantizer(files)
    try:
        contents = read_contents(files, () if quantizer is None else quantizer.suffixes)
    except CheckpointError as error:
        return replace(base, problems=(str(error),))
    tensors = contents.tensors
    base = replace(
        base,
        naming=contents.scheme.title,
        nbytes=sum(info.nbytes for info in tensors.values()),
        parameters=_by_part(tensors),
        dtypes=_by_dtype(tensors.values()),
        unexpected=contents.unknown,
    )
    try:
        if refusal is not None:
            raise refusal
        config = whole_config(files, read_raw(files), tensors)
        kind = next(one for one in KINDS if isinstance(config, one.config))
        announce(quantizer, kind, contents)
        wanted = wanted_by(build_empty(networks[kind.architecture], config), torch.bfloat16, quantizer)
    except (CheckpointError, ConfigError) as error:
        return replace(base, problems=(str(error),))
    plan = make_plan(wanted, kind, contents)
    found = problems(plan, contents)
    quantized = () if quantizer is None else _quantized(kind, plan, quantizer)
    return replace(
        _recounted(base, kind, plan, quantized),
        config=config,
        quantization=quantized,
        missing=plan.missing,
        unexpected=plan.unexpected,
        mismatched=plan.mismatched,
        problems=(*found, advice(plan, contents)) if found else (),
    )


def _stored_quantizer(files: Files) -> tuple[Quantizer | None, CheckpointError | ConfigError | None]:
    """The scheme in which the weights are stored (None: full precision), or why it cannot be read."""
    try:
        return choose_quantizer(
            QuantizationArguments(), stored_quantization(files, read_raw(files)), files.config
        ), None
    except (CheckpointError, ConfigError) as error:
        return None, error


def _by_part(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Number of parameters by part, in the order of `_TITLES`."""
    counts = dict.fromkeys(_TITLES, 0)
    for name, info in tensors.items():
        counts["embeddings" if name.endswith(".embed_tokens.weight") else names.part_of(name)] += info.numel
    return {title: counts[part] for part, title in _TITLES.items() if counts[part]}


def _by_dtype(tensors: Iterable[TensorInfo]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for info in tensors:
        name = str(info.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + info.numel
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _quantized(kind: Kind, plan: Plan, quantizer: Quantizer) -> tuple[QuantizedPart, ...]:
    """The quantized layers by part and format, in the order of `_TITLES`."""
    sizes: dict[str, int] = {}
    for name, (path, _) in plan.wanted.owners.items():
        if name in plan.sources:
            sizes[path] = sizes.get(path, 0) + plan.sources[name].nbytes
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for name, layer in plan.wanted.layers.items():
        part = names.part_of(kind.own.canonical(f"{name}.weight") or name)
        weights = int(getattr(layer, "in_features", 0)) * int(getattr(layer, "out_features", 0))
        groups.setdefault((part, quantizer.describe(layer)), []).append((weights, sizes.get(name, 0)))
    order = list(_TITLES)
    return tuple(
        QuantizedPart(_TITLES[part], words, len(found), sum(one for one, _ in found), sum(size for _, size in found))
        for (part, words), found in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    )


def _recounted(
    report: CheckpointReport, kind: Kind, plan: Plan, quantized: tuple[QuantizedPart, ...]
) -> CheckpointReport:
    """Parameters and dtypes with quantized layers counted as the weights that they stand for."""
    if not quantized:
        return report
    plain = {kind.own.canonical(n) or n: info for n, info in plan.sources.items() if n not in plan.wanted.owners}
    counts, dtypes = _by_part(plain), _by_dtype(plain.values())
    for one in quantized:
        counts[one.part] = counts.get(one.part, 0) + one.parameters
        dtypes[one.format] = dtypes.get(one.format, 0) + one.parameters
    ordered = {title: counts[title] for title in _TITLES.values() if title in counts}
    return replace(report, parameters=ordered, dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])))


def _summary(config: Config | None) -> dict[str, object]:
    if isinstance(config, LlavaConfig):
        return {
            **_summary(config.vision_config),
            **_summary(config.text_config),
            "image token": config.image_token_index,
        }
    if isinstance(config, PixtralVisionConfig):
        heads = f"{config.num_attention_heads} heads of {config.head_dim}"
        return {
            "tower": f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {heads}",
            "images": f"up to {config.image_size} pixels, patches of {config.patch_size}",
        }
    if isinstance(config, MistralConfig):
        heads = f"{config.num_attention_heads} query and {config.num_key_value_heads} key heads of {config.head_dim}"
        return {
            "decoder": f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {heads}",
            "vocabulary": config.vocab_size,
            "positions": config.max_position_embeddings,
        }
    return {}
