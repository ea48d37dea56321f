"""Memory in huge pages: shape, dtype, and that it is ordinary memory otherwise."""

import pytest
import torch

from pixtral.ops.runtime import empty_huge


@pytest.mark.parametrize("shape", [(0,), (3, 5), (), (2, 0, 4), (1 << 12, 1 << 11)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_it_is_a_tensor_of_that_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also empty ones and scalars; what is written is what is read."""
    tensor = empty_huge(shape, dtype)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
    assert torch.equal(tensor.fill_(3), torch.full(shape, 3, dtype=dtype))
