"""The CPU's resources: huge pages for large tensors, and the number of threads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pixtral.errors import ConfigError


def empty_huge(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised CPU memory, in huge pages where the system gives them on request.

    Weights are read once per token: with 2 MiB pages instead of 4 KiB the memory delivers an eighth more (measured by
    `pixtral bench`). NumPy asks for them (madvise) for arrays of at least 4 MiB; torch.empty does not.
    """
    count = math.prod(shape) * dtype.itemsize
    if count == 0:  # NumPy's empty arrays have strides that PyTorch cannot view as another dtype
        return torch.empty(*shape, dtype=dtype, device="cpu")
    flat = torch.from_numpy(np.empty(count, np.uint8)).view(dtype)
    return flat.view(list(shape)).detach()  # not a view: autograd would follow it back to bytes


def use_threads(threads: int) -> None:
    """Set the number of threads of PyTorch and of the native kernels, for the whole process.

    Raises:
        ConfigError: not a number from 1.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"threads is {threads!r}; expected 1 or more, or None for as many as there are cores")
    torch.set_num_threads(threads)
