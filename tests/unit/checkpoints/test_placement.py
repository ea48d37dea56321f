"""dtype and device_map: what Transformers' programs write, and clear refusals of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pixtral.checkpoints.placement import parse_device, parse_dtype
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


@pytest.mark.parametrize("given", [None, "cpu", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")}])
def test_cpu(given: Any) -> None:
    assert parse_device(given) == torch.device("cpu")


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_the_best_single_device(cuda: bool, mps: bool, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert parse_device("auto") == torch.device(best)


@pytest.mark.parametrize("given", ["cuda", "cuda:1", 0, {"": 0}, "mps", "meta", "xla"])
def test_a_device_that_is_not_there(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="which is not available here; use 'auto' or 'cpu'"):
        parse_device(given)


def test_numbered_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="asks for cuda:2, but there are 2 CUDA devices"):
        parse_device({"": "cuda:2"})


@pytest.mark.parametrize("given", [{"model.vision_tower": 0, "model.language_model": 1}, {}, {"lm_head": "cpu"}])
def test_several_devices_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="spreads the model; one device is supported"):
        parse_device(given)


@pytest.mark.parametrize("given", ["balanced", "sequential", "gpu", "", 1.5])
def test_what_is_no_device(given: Any) -> None:
    with pytest.raises(ConfigError, match="expected None, 'auto', 'cpu', 'cuda'"):
        parse_device(given)
