"""BatchFeature: a mapping with attributes, tensors on request, moved and cast in one go."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from pixtral.batch_feature import BatchEncoding, BatchFeature
from pixtral.errors import ConfigError, PromptError, UnknownArgument


def make() -> BatchFeature:
    return BatchFeature(
        {
            "input_ids": torch.tensor([[1, 2]]),
            "pixel_values": torch.ones(1, 3, 2, 2),
            "parts": [torch.zeros(2), torch.ones(1, dtype=torch.int64)],
            "names": ["a"],
        }
    )


def test_is_a_mapping_with_attributes() -> None:
    batch = make()
    assert list(batch) == ["input_ids", "pixel_values", "parts", "names"] and len(batch) == 4
    assert batch.input_ids is batch["input_ids"]
    assert dict(**batch).keys() == batch.keys()
    assert {name for name, _ in batch.items()} == set(batch.data)
    batch["input_ids"] = 5
    batch.names = ["b"]
    assert batch.input_ids == 5 and batch["names"] == ["b"]
    del batch["parts"]
    assert "parts" not in batch and batch.get("parts") is None and batch.pop("names") == ["b"]
    assert "pixel_values" in dir(batch) and "pixel_values" in repr(batch)
    assert BatchEncoding is BatchFeature


def test_missing_entries_name_what_is_there() -> None:
    with pytest.raises(AttributeError, match="holds: input_ids, pixel_values"):
        _ = make().image_sizes
    with pytest.raises(KeyError, match="by name"):
        make()[0]  # type: ignore[index]
    with pytest.raises(AttributeError, match="is a method"):
        make().keys = 3  # type: ignore[method-assign, assignment]
    assert not hasattr(BatchFeature(), "anything")
    assert not hasattr(BatchFeature.__new__(BatchFeature), "anything")  # not even while it is being rebuilt


def test_pickle_and_copies() -> None:
    for other in (pickle.loads(pickle.dumps(make())), copy.deepcopy(make()), copy.copy(make()), make().copy()):
        assert isinstance(other, BatchFeature)
        assert torch.equal(other.input_ids, make().input_ids) and other["names"] == ["a"]


def test_to_casts_only_floating_tensors() -> None:
    batch = make()
    assert batch.to(torch.bfloat16) is batch
    assert batch.pixel_values.dtype == torch.bfloat16 and batch.input_ids.dtype == torch.int64
    assert [part.dtype for part in batch.parts] == [torch.bfloat16, torch.int64]
    assert batch.names == ["a"]


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_to_moves_every_tensor(device: str) -> None:
    for batch in (
        make().to(device),
        make().to(device=device, dtype=torch.float16),
        make().to(device, torch.float16),
        make().to(device, non_blocking=True),
    ):
        assert {batch.input_ids.device.type, batch.pixel_values.device.type, batch.parts[1].device.type} == {"meta"}


def test_to_refuses() -> None:
    with pytest.raises(UnknownArgument, match="'copy'"):
        make().to("cpu", copy=True)
    with pytest.raises(UnknownArgument, match="expected a device"):
        make().to(1.5)
    with pytest.raises(UnknownArgument, match=r"torch\.dtype"):
        make().to(dtype="float16")


def test_tensor_types() -> None:
    data = {
        "ids": [[1, 2], [3, 4]],
        "sizes": [(16, 32)],
        "arrays": [np.zeros(2), np.ones(2)],
        "names": ["a"],
        "no": None,
    }
    tensors = BatchFeature(data, tensor_type="pt")
    assert torch.equal(tensors.ids, torch.tensor([[1, 2], [3, 4]])) and tensors.sizes.dtype == torch.int64
    assert tensors.arrays.shape == (2, 2) and tensors.names == ["a"] and tensors.no is None
    arrays = BatchFeature({**data, "list": [torch.zeros(2)], "tensor": torch.ones(1)}, tensor_type="np")
    assert all(isinstance(arrays[name], np.ndarray) for name in ("ids", "sizes", "arrays", "list", "tensor"))
    assert arrays.ids.dtype == np.int64


@pytest.mark.parametrize("value", [[[1], [1, 2]], [torch.zeros(1), torch.zeros(2)], [np.zeros(1), np.zeros(2)]])
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_ragged_entries_say_what_to_do(value: list[object], kind: str) -> None:
    with pytest.raises(PromptError, match=r"'ids' cannot become one tensor .*padding=True"):
        BatchFeature({"ids": value}, tensor_type=kind)


def test_unknown_tensor_type() -> None:
    with pytest.raises(ConfigError, match="'tf'; expected 'pt', 'np'"):
        BatchFeature({}, tensor_type="tf")


def test_importing_loads_no_torch() -> None:
    code = "import sys, pixtral.batch_feature, pixtral.images.processors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
