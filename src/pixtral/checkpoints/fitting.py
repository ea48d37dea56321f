"""Placement of a model before anything is read, and the check that it fits into memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from pixtral.checkpoints import memory
from pixtral.checkpoints.fill import Target, rows_only, scratch_bytes
from pixtral.checkpoints.memory import Setting, check_fits, gigabytes
from pixtral.checkpoints.offload import has_accelerate, spread
from pixtral.checkpoints.opening import Opened, build_empty
from pixtral.checkpoints.placement import Place, Placement, Wish, best_device, device_of, explicit, place_of
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


def choose_placement(one: Opened, wish: Wish) -> Placement:
    """Where the modules go; `check_memory` checks whether there is room.

    Raises:
        ConfigError: a map that does not fit the model, or layers in a place that cannot compute them.
        MissingDependency: several places, and accelerate is not installed.
    """
    placement = explicit(one.model, wish.devices) if wish.strategy is None else _by_strategy(one, wish)
    _refuse_misplaced(one, placement)
    return placement


def check_memory(one: Opened, target: Target, wish: Wish) -> None:
    """Refuse a model that cannot fit, and name settings with which it would.

    Raises:
        CheckpointError: with the numbers.
    """
    placement, sizes = target.placement, _sizes(one)
    needs: dict[Place, int] = dict.fromkeys(placement.devices.values(), 0)
    for name, size in sizes.items():
        info = one.plan.sources.get(name)
        if info is None or not rows_only(name, info, target):
            needs[placement.of(name)] += size
    beside = {"cpu": scratch_bytes(one.plan, target)}
    if placement.spread:
        waiting = [size for name, size in sizes.items() if _waits(placement, placement.of(name))]
        beside[str(placement.main)] = max(beside.get(str(placement.main), 0), max(waiting, default=0))
    for place in needs.keys() - {"disk"}:
        device, limit = device_of(place), (wish.max_memory or {}).get(place)
        if limit is not None:
            check_fits(_words(one), needs[place], 0, device, lambda: _settings(one, target, wish), limit)
        check_fits(_words(one), needs[place], beside.get(str(place), 0), device, lambda: _settings(one, target, wish))


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


def _by_strategy(one: Opened, wish: Wish) -> Placement:
    assert wish.strategy is not None
    best = _CPU if _cpu_only(one) else best_device()
    limits = wish.max_memory or _free(best)
    need = sum(_sizes(one).values())
    if wish.strategy == "auto" or _cpu_only(one) or len(limits) == 1:
        fast = [] if _cpu_only(one) else [place for place in limits if place != "cpu"]
        for place in fast or ["cpu"]:
            if need <= limits.get(place, 0):
                return Placement({"": place})
    alone = Placement({"": place_of(best)})
    if _cpu_only(one):
        return alone
    consent = wish.max_memory is not None or wish.offload_folder is not None
    if not consent and (len(limits) == 1 or not has_accelerate()):
        return alone  # it may just fit; else it is refused with the numbers
    _retype(one)
    placement = spread(one.model, wish.strategy, limits, _widths(one))
    return placement if consent or "disk" not in placement.devices.values() else alone


def _free(best: torch.device) -> dict[Place, int]:
    """Bytes that a strategy may use: all GPUs and the CPU, or the one device that shares the CPU's memory."""
    devices = [best] if best.type == "mps" else [_CPU]
    if best.type == "cuda":
        devices = [*(torch.device("cuda", i) for i in range(torch.cuda.device_count())), _CPU]
    free = {place_of(device): memory.available_memory(device) for device in devices}
    return {place: 1 << 62 if room is None else int(SHARE * room) for place, room in free.items()}


def _retype(one: Opened) -> None:
    """Give the parameters on `meta` the dtype that they will have, so that their sizes are right."""
    for name in one.plan.wanted.slots:
        if name not in one.plan.wanted.owners:
            parameter = one.model.get_parameter(name)
            parameter.data = parameter.data.to(one.dtype)


def _widths(one: Opened) -> dict[str, torch.dtype]:
    """For accelerate, which counts elements: the parameters of quantized layers are as wide as these dtypes."""
    return {f"{name}.weight": torch.int8 for name in one.plan.wanted.layers}


def _refuse_misplaced(one: Opened, placement: Placement) -> None:
    """Quantized layers compute where they lie, and ours only on the CPU."""
    main = placement.main
    allowed = {"cpu"} if _cpu_only(one) else {place for place in placement.devices.values() if place != "disk"}
    if not _cpu_only(one) and main != "cpu":
        allowed.discard("cpu")  # what waits there is brought to the GPU in full precision only
    for name in one.plan.wanted.layers:
        place = placement.of(name)
        if place in allowed and not (_cpu_only(one) and main != "cpu"):
            continue
        why = "compute on the CPU alone" if _cpu_only(one) else "stay on the device that they were quantized for"
        raise ConfigError(
            f"{_words(one)} layers {why}, but device_map puts {name} on {place!r}"
            + (f" beside modules on {main!r}" if place == "cpu" else "")
            + "; leave device_map out, or load the model without quantization"
        )


def _waits(placement: Placement, place: Place) -> bool:
    """Whether what lies there is brought elsewhere to compute."""
    return place == "disk" or (place == "cpu" and placement.main != "cpu")


def _settings(one: Opened, target: Target, wish: Wish) -> Iterator[Setting]:
    """Other ways to load the same model, the least change first."""
    main = device_of(target.placement.main)
    sizes = _sizes(one)
    plain = one.quantizer is None
    wider = isinstance(one.quantizer, GroupwiseQuantizer) and one.quantizer.config.bits > 4 and not one.quantizer.stored
    if plain and one.dtype.itemsize > 2:
        yield Setting('dtype="bfloat16"', sum(sizes.values()) * 2 // one.dtype.itemsize, main)
    if plain or wider:
        needed = _quantized_bytes(one)
        if needed is not None:
            yield Setting('quantization="int4"', needed, _CPU)
    if main.type != "cpu":
        yield Setting('device_map="cpu"', sum(sizes.values()), _CPU)
    if plain and wish.offload_folder is None:
        yield _on_disk(one)


def _quantized_bytes(one: Opened) -> int | None:
    """Bytes of the model in 4 bits, or None if it cannot be quantized."""
    model = build_empty(type(one.model), one.config)
    quantizer = GroupwiseQuantizer(QuantizationConfig(bits=4))
    try:
        layers = quantizer.swap(model, torch.bfloat16)
    except ConfigError:  # a width that no group divides, or no decoder
        return None
    work = max(quantizer.work_bytes(layer) for layer in layers.values()) + BLOCK_BYTES
    plain = sum(p.numel() * one.dtype.itemsize for p in model.parameters())
    return plain + sum(quantizer.nbytes(layer) for layer in layers.values()) + work


def _on_disk(one: Opened) -> Setting:
    """The rest on the disk: there must be room for the largest block twice, once to stay and once to come and go."""
    blocks: dict[str, int] = {}
    for name, size in _sizes(one).items():
        block = _BLOCK.match(name)
        key = block[0] if block else name
        blocks[key] = blocks.get(key, 0) + size
    keeps = gigabytes(int(SHARE * (memory.available_memory(_CPU) or 0)))
    install = "" if has_accelerate() else ", after `pip install 'pixtral[offload]'`"
    return Setting(
        'device_map="auto" with offload_folder=...',
        2 * max(blocks.values()),
        _CPU,
        f"keeps up to {keeps} in memory and reads the rest from the disk{install}",
    )


def _sizes(one: Opened) -> dict[str, int]:
    return tensor_sizes(one.model, one.plan.wanted, one.dtype, one.quantizer)


def _words(one: Opened) -> str:
    """The number format, for messages."""
    config = None if one.quantizer is None else one.quantizer.config
    if config is None:
        return str(one.dtype).removeprefix("torch.")
    return config.name if isinstance(config, QuantizationConfig) else "bitsandbytes' format"


def _cpu_only(one: Opened) -> bool:
    """Whether there are layers that only a CPU computes."""
    return isinstance(one.quantizer, GroupwiseQuantizer)
