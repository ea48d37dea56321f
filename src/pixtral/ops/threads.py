"""How many processor threads PyTorch and the kernels use."""

from __future__ import annotations

import torch

from pixtral.errors import ConfigError


def use_threads(threads: int) -> None:
    """Set it for the whole process.

    Raises:
        ConfigError: not a number from 1.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"threads is {threads!r}; expected 1 or more, or None for as many as there are cores")
    torch.set_num_threads(threads)
