"""dtype and device_map: what Transformers' programs write, and clear refusals of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pixtral.checkpoints.placement import (
    Placement,
    PlacementOptions,
    best_device,
    explicit,
    parse_dtype,
    parse_placement_options,
)
from pixtral.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("auto", None),
        ("bfloat16", torch.bfloat16),
        ("torch.float16", torch.float16),
        ("half", torch.float16),
        (torch.float32, torch.float32),
    ],
)
def test_dtype(given: Any, expected: torch.dtype | None) -> None:
    assert parse_dtype(given) == expected


@pytest.mark.parametrize("given", ["int8", "float8_e4m3fn", torch.int64, "bf17", "nn", "", 16])
def test_dtypes_that_nothing_computes_in(given: Any) -> None:
    with pytest.raises(ConfigError, match="expected 'auto' or one of bfloat16, float16, float32, float64"):
        parse_dtype(given)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as far as anyone can tell without using them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize("given", [None, "cpu", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")}])
def test_cpu(given: Any) -> None:
    assert parse_placement_options(given) == PlacementOptions(None, {"": "cpu"})


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_best_single_device(cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(best)


@pytest.mark.parametrize("given", ["cuda", "cuda:1", 0, {"": 0}, "mps", "meta", "xla", {"lm_head": "cuda"}])
def test_a_device_that_is_not_there(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="which is not available here; use 'auto' or 'cpu'"):
        parse_placement_options(given)


@pytest.mark.parametrize("given", ["cuda:1", 1, torch.device("cuda", 1), {"": 1}, "cuda"])
def test_numbered_devices(given: Any, gpus: None) -> None:
    assert parse_placement_options(given) == PlacementOptions(None, {"": 1})
    with pytest.raises(ConfigError, match="asks for cuda:2, but there are 2 CUDA devices"):
        parse_placement_options({"": "cuda:2"})


@pytest.mark.parametrize("given", ["gpu", "", 1.5, {"lm_head": "disc"}])
def test_what_is_no_device(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected None, 'auto', .* 'cpu', 'cuda', a torch.device, or a dict"):
        parse_placement_options(given)


def test_limits_on_memory(gpus: None) -> None:
    limits = {"cpu": "2GiB", 1: 10, "0": "1KB", "disk": "1GB"}
    options = parse_placement_options("balanced", limits, "~/offload")  # type: ignore[arg-type]
    assert options.strategy == "balanced"
    assert list((options.max_memory or {}).items()) == [(0, 1000), (1, 10), ("cpu", 2**31)]
    assert options.offload_folder == Path.home() / "offload"


@pytest.mark.parametrize(
    ("device_map", "limits", "says"),
    [
        (
            "cpu",
            {"cpu": "1GB"},
            "limits what a strategy may use, but device_map is 'cpu'; set device_map to one of 'auto'",
        ),
        ("auto", {"cpu": "much"}, r"max_memory\['cpu'\] is 'much'; expected a number of bytes"),
        ("auto", {"gpu": 1}, "limits 'gpu'; expected the number of a GPU, 'cpu' or 'mps'"),
        ("auto", {3: "1GB"}, "asks for cuda:3, but there are 2"),
        ("auto", {}, "names no device"),
        ({}, None, "is an empty dict"),
    ],
)
def test_options_that_cannot_be(device_map: Any, limits: Any, says: str, gpus: None) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_placement_options(device_map, limits)


def small() -> nn.Module:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 3), "c": nn.Linear(2, 3)}), "d": nn.Linear(2, 3)})
    model["e"] = nn.Linear(2, 3)
    model["e"].weight = model["d"].weight
    return model


def test_the_innermost_name_decides() -> None:
    placement = explicit(small(), {"": "cpu", "a": 1, "a.b": "disk", "d": "disk", "e": "disk"})
    assert [placement.of(name) for name in ("a.b.weight", "a.b", "a.c.bias", "d.weight")] == ["disk", "disk", 1, "disk"]
    assert placement.disjoint(small()) == {"a.b": "disk", "a.c": 1, "d": "disk", "e": "disk"}
    assert placement.main == 1 and placement.spread
    assert Placement({"": "cpu"}).main == "cpu" and not Placement({"": "cpu"}).spread
    assert Placement({"": "disk"}).main == "cpu" and Placement({"": "disk"}).spread


def test_a_shared_tensor_stays_in_memory_for_both() -> None:
    placement = explicit(small(), {"a": "disk", "d": "disk", "e": "cpu"})
    assert placement.devices == {"a": "disk", "d": "cpu", "e": "cpu"}


def test_maps_that_do_not_fit_the_model() -> None:
    with pytest.raises(ConfigError, match=r"names a module 'a.f' that the model has not; did you mean 'a\."):
        explicit(small(), {"": "cpu", "a.f": "disk"})
    with pytest.raises(ConfigError, match=r"says nothing about 3 parameters \(d.weight, d.bias, e.bias, ...\)"):
        explicit(small(), {"a": "cpu"})
