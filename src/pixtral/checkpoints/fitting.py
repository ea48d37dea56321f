"""Placement of a model before anything is read, and the check that it fits into memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from pixtral.checkpoints import memory
from pixtral.checkpoints.fill import Target, rows_only, scratch_bytes
from pixtral.checkpoints.memory import Alternative, check_fits, gigabytes
from pixtral.checkpoints.offload import has_accelerate, spread
from pixtral.checkpoints.opening import Opened, build_empty
from pixtral.checkpoints.placement import Place, Placement, PlacementOptions, best_device, device_of, explicit, place_of
from pixtral.checkpoints.plan import Wanted
from pixtral.configuration.quantization import QuantizationConfig
from pixtral.errors import ConfigError
from pixtral.quantization import Quantizer
from pixtral.quantization.base import BLOCK_BYTES
from pixtral.quantization.groupwise import GroupwiseQuantizer

# A strategy fills this share of what is free: the rest is for activations and the cache.
SHARE = 0.9
_CPU = torch.device("cpu")
_BLOCK = re.compile(r".*\.layers\.\d+\.")


def choose_placement(opened: Opened, options: PlacementOptions) -> Placement:
    """Where the modules go; `check_memory` checks whether there is room.

    Raises:
        ConfigError: a map that does not fit the model, or layers in a place that cannot compute them.
        MissingDependency: several places, and accelerate is not installed.
    """
    placement = explicit(opened.model, options.devices) if options.strategy is None else _by_strategy(opened, options)
    _refuse_misplaced(opened, placement)
    return placement


def check_memory(opened: Opened, target: Target, options: PlacementOptions) -> None:
    """Refuse a model that cannot fit, and name settings with which it would.

    Raises:
        CheckpointError: with the numbers.
    """
    placement, sizes = target.placement, _sizes(opened)
    needs: dict[Place, int] = dict.fromkeys(placement.devices.values(), 0)
    for name, size in sizes.items():
        info = opened.plan.sources.get(name)
        if info is None or not rows_only(name, info, target):
            needs[placement.of(name)] += size
    extra = {"cpu": scratch_bytes(opened.plan, target)}
    if placement.spread:
        waiting = [size for name, size in sizes.items() if _waits(placement, placement.of(name))]
        extra[str(placement.main)] = max(extra.get(str(placement.main), 0), max(waiting, default=0))
    for place in needs.keys() - {"disk"}:
        device, limit = device_of(place), (options.max_memory or {}).get(place)
        if limit is not None:
            check_fits(_format(opened), needs[place], 0, device, lambda: _alternatives(opened, target, options), limit)
        check_fits(
            _format(opened),
            needs[place],
            extra.get(str(place), 0),
            device,
            lambda: _alternatives(opened, target, options),
        )


def tensor_sizes(model: nn.Module, wanted: Wanted, dtype: torch.dtype, quantizer: Quantizer | None) -> dict[str, int]:
    """Bytes that each parameter, and each quantized layer under its own name, will take; tied ones once.

    Args:
        model: on `meta`, its layers swapped by the quantizer.
        wanted: what it needs.
        dtype: of everything in full precision.
        quantizer: of the swapped layers.
    """
    sizes: dict[str, int] = {}
    for name in wanted.slots:
        if name not in wanted.owners and wanted.tied.get(name, name) == name:
            sizes[name] = model.get_parameter(name).numel() * dtype.itemsize
    for name, layer in wanted.layers.items():
        assert quantizer is not None
        sizes[name] = quantizer.nbytes(layer)
    return sizes


def _by_strategy(opened: Opened, options: PlacementOptions) -> Placement:
    assert options.strategy is not None
    best = _CPU if _cpu_only(opened) else best_device()
    limits = options.max_memory or _free(best)
    need = sum(_sizes(opened).values())
    if options.strategy == "auto" or _cpu_only(opened) or len(limits) == 1:
        fast = [] if _cpu_only(opened) else [place for place in limits if place != "cpu"]
        for place in fast or ["cpu"]:
            if need <= limits.get(place, 0):
                return Placement({"": place})
    alone = Placement({"": place_of(best)})
    if _cpu_only(opened):
        return alone
    consent = options.max_memory is not None or options.offload_folder is not None
    if not consent and (len(limits) == 1 or not has_accelerate()):
        return alone  # it may just fit; else it is refused with the numbers
    _retype(opened)
    placement = spread(opened.model, options.strategy, limits, _widths(opened))
    return placement if consent or "disk" not in placement.devices.values() else alone


def _free(best: torch.device) -> dict[Place, int]:
    """Bytes that a strategy may use: all GPUs and the CPU, or the one device that shares the CPU's memory."""
    devices = [best] if best.type == "mps" else [_CPU]
    if best.type == "cuda":
        devices = [*(torch.device("cuda", i) for i in range(torch.cuda.device_count())), _CPU]
    free = {place_of(device): memory.available_memory(device) for device in devices}
    return {place: 1 << 62 if room is None else int(SHARE * room) for place, room in free.items()}


def _retype(opened: Opened) -> None:
    """Give the parameters on `meta` the dtype that they will have, so that their sizes are right."""
    for name in opened.plan.wanted.slots:
        if name not in opened.plan.wanted.owners:
            parameter = opened.model.get_parameter(name)
            parameter.data = parameter.data.to(opened.dtype)


def _widths(opened: Opened) -> dict[str, torch.dtype]:
    """For accelerate, which counts elements: the parameters of quantized layers are as wide as these dtypes."""
    return {f"{name}.weight": torch.int8 for name in opened.plan.wanted.layers}


def _refuse_misplaced(opened: Opened, placement: Placement) -> None:
    """Refuse quantized layers on devices that cannot compute them; group-wise ones compute on the CPU only."""
    main = placement.main
    allowed = {"cpu"} if _cpu_only(opened) else {place for place in placement.devices.values() if place != "disk"}
    if not _cpu_only(opened) and main != "cpu":
        allowed.discard("cpu")  # what waits there is brought to the GPU in full precision only
    for name in opened.plan.wanted.layers:
        place = placement.of(name)
        if place in allowed and not (_cpu_only(opened) and main != "cpu"):
            continue
        why = "compute on the CPU alone" if _cpu_only(opened) else "stay on the device that they were quantized for"
        raise ConfigError(
            f"{_format(opened)} layers {why}, but device_map puts {name} on {place!r}"
            + (f" beside modules on {main!r}" if place == "cpu" else "")
            + "; leave device_map out, or load the model without quantization"
        )


def _waits(placement: Placement, place: Place) -> bool:
    """Whether tensors in this place are moved to another device to compute."""
    return place == "disk" or (place == "cpu" and placement.main != "cpu")


def _alternatives(opened: Opened, target: Target, options: PlacementOptions) -> Iterator[Alternative]:
    """Other ways to load the same model, the least change first."""
    main = device_of(target.placement.main)
    sizes = _sizes(opened)
    plain = opened.quantizer is None
    wider = (
        isinstance(opened.quantizer, GroupwiseQuantizer)
        and opened.quantizer.config.bits > 4
        and not opened.quantizer.stored
    )
    if plain and opened.dtype.itemsize > 2:
        yield Alternative('dtype="bfloat16"', sum(sizes.values()) * 2 // opened.dtype.itemsize, main)
    if plain or wider:
        needed = _quantized_bytes(opened)
        if needed is not None:
            yield Alternative('quantization="int4"', needed, _CPU)
    if main.type != "cpu":
        yield Alternative('device_map="cpu"', sum(sizes.values()), _CPU)
    if plain and options.offload_folder is None:
        yield _on_disk(opened)


def _quantized_bytes(opened: Opened) -> int | None:
    """Bytes of the model in 4 bits, or None if it cannot be quantized."""
    model = build_empty(type(opened.model), opened.config)
    quantizer = GroupwiseQuantizer(QuantizationConfig(bits=4))
    try:
        layers = quantizer.swap(model, torch.bfloat16)
    except ConfigError:  # a width that no group divides, or no decoder
        return None
    work = max(quantizer.work_bytes(layer) for layer in layers.values()) + BLOCK_BYTES
    plain = sum(p.numel() * opened.dtype.itemsize for p in model.parameters())
    return plain + sum(quantizer.nbytes(layer) for layer in layers.values()) + work


def _on_disk(opened: Opened) -> Alternative:
    """The rest on the disk: there must be room for the largest block twice, once to stay and once to come and go."""
    blocks: dict[str, int] = {}
    for name, size in _sizes(opened).items():
        block = _BLOCK.match(name)
        key = block[0] if block else name
        blocks[key] = blocks.get(key, 0) + size
    keeps = gigabytes(int(SHARE * (memory.available_memory(_CPU) or 0)))
    install = "" if has_accelerate() else ", after `pip install 'pixtral[offload]'`"
    return Alternative(
        'device_map="auto" with offload_folder=...',
        2 * max(blocks.values()),
        _CPU,
        f"keeps up to {keeps} in memory and reads the rest from the disk{install}",
    )


def _sizes(opened: Opened) -> dict[str, int]:
    return tensor_sizes(opened.model, opened.plan.wanted, opened.dtype, opened.quantizer)


def _format(opened: Opened) -> str:
    """The number format, for messages."""
    config = None if opened.quantizer is None else opened.quantizer.config
    if config is None:
        return str(opened.dtype).removeprefix("torch.")
    return config.name if isinstance(config, QuantizationConfig) else "bitsandbytes' format"


def _cpu_only(opened: Opened) -> bool:
    """Whether there are layers that only a CPU computes."""
    return isinstance(opened.quantizer, GroupwiseQuantizer)
