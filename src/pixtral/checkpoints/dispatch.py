"""One model in several places: which module goes where, and the hooks that bring tensors together (by accelerate)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn

from pixtral.checkpoints.offload import Offloaded
from pixtral.checkpoints.placement import Place, Placement, device_of
from pixtral.errors import MissingDependency
from pixtral.models.base import PixtralModule
from pixtral.models.mistral import MistralDecoderLayer
from pixtral.models.vision import PixtralAttentionLayer

_UNSPLIT = (MistralDecoderLayer, PixtralAttentionLayer)  # what adds its input to its output stays in one place
_log = logging.getLogger("pixtral")


def has_accelerate() -> bool:
    """Whether a model can be spread here."""
    try:
        _accelerate()
    except MissingDependency:
        return False
    return True


def spread(model: nn.Module, strategy: str, limits: Mapping[Place, int], sizes: Mapping[str, torch.dtype]) -> Placement:
    """The placement that a strategy of Transformers gives: GPUs first, then memory, then the disk.

    Args:
        model: on `meta`, with the dtypes that it will have.
        strategy: "auto" and "balanced" fill several GPUs evenly, "balanced_low_0" leaves room on the first,
            "sequential" fills one after another.
        limits: place -> bytes that may be used there; places that are not named are not used.
        sizes: parameter -> the dtype whose width it really takes, where that is not its own.

    Raises:
        MissingDependency: accelerate is not installed.
    """
    accelerate = _accelerate()
    unsplit = sorted({type(module).__name__ for module in model.modules() if isinstance(module, _UNSPLIT)})
    most = dict(limits)
    options = {"no_split_module_classes": unsplit, "special_dtypes": dict(sizes)}
    if strategy != "sequential":
        low = strategy == "balanced_low_0"
        most = accelerate.utils.get_balanced_memory(model, max_memory=most, low_zero=low, **options)
    return Placement(dict(accelerate.infer_auto_device_map(model, max_memory=most, **options)))


def attach(model: nn.Module, placement: Placement, offloaded: Offloaded) -> None:
    """Let every module fetch what it needs when it computes.

    Args:
        model: filled; what is on the disk, or waits in memory for a GPU, may still be on `meta`.
        placement: of its modules.
        offloaded: everything that is not where it is computed with.

    Raises:
        MissingDependency: accelerate is not installed.
    """
    main = placement.main
    if "disk" in placement.devices.values():
        model.requires_grad_(False)  # a graph of gradients would hold on to every tensor that was fetched
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if main != "cpu" and placement.of(name) == "cpu":
            offloaded.hold(name, parameter.data)
    with _quiet():  # it would say that some parameters are on `meta`, which is how it is meant
        devices = {name: _device(place) for name, place in placement.disjoint(model).items()}
        _accelerate().dispatch_model(model, devices, main_device=_device(main), state_dict=offloaded, offload_index={})
    model.offloaded = offloaded  # type: ignore[assignment]
    model.hf_device_map = dict(placement.devices)  # type: ignore[assignment]  # nn.Module takes any attribute
    for module in model.modules():
        if isinstance(module, PixtralModule):
            module.main_device = device_of(main)
    _log.info("the model is spread: %s", dict(placement.devices))


def _device(place: Place) -> str | torch.device:
    """As accelerate takes it."""
    return device_of(place) if isinstance(place, int) else place


def _accelerate() -> ModuleType:
    try:
        import accelerate
        import accelerate.utils
    except ImportError as error:
        raise MissingDependency(
            "found no accelerate, which spreads a model over several devices or the disk; install it with "
            "`pip install 'pixtral[offload]'`, or load the model onto one device"
        ) from error
    module: ModuleType = accelerate
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("accelerate.big_modeling")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
