"""What every test stands on: fixed seeds, one thread, and reproducible hypothesis runs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import profiles
import pytest
import torch
from isas import using_isa

from pixtral.ops.native.library import ISAS

pytest_plugins = ["skips"]

profiles.register()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, and test processes beside each other would fight for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before it; gradients are on when a test starts."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled(), "a test left gradients switched off"


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU and this build have."""
    with using_isa(request.param):
        yield request.param


@pytest.fixture(params=[name for name in ISAS if name != "portable"])
def vector_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each that has kernels for attention and for products of bfloat16."""
    with using_isa(request.param):
        yield request.param
