"""Embeddings read row by row from a file give what the table gives, and know when it is not the table any more."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixtral.layers.file_embedding import FileEmbedding, RowFile


@pytest.fixture
def pair(tmp_path: Path) -> tuple[nn.Embedding, FileEmbedding]:
    """A table, and the same over a file that has 40 other bytes before it and 8 after."""
    plain = nn.Embedding(50, 24, dtype=torch.bfloat16)
    plain.weight.requires_grad_(False)
    path = tmp_path / "table"
    path.write_bytes(b"x" * 40 + plain.weight.view(torch.uint8).numpy().tobytes() + b"y" * 8)
    with path.open("rb") as stream:
        return plain, FileEmbedding.over(plain, stream.fileno(), 40)


def forget(ids: Tensor) -> Tensor:
    """Stands for nn.Embedding.forward where that must not be called."""
    raise AssertionError("the weight was read")


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (0,), ()])
def test_rows_of_the_file_are_rows_of_the_table(pair: tuple[nn.Embedding, FileEmbedding], shape: tuple[int]) -> None:
    """For ids of any shape."""
    plain, rows = pair
    ids = torch.randint(50, shape)
    assert torch.equal(rows(ids), plain(ids))


def test_the_weight_is_not_touched(pair: tuple[nn.Embedding, FileEmbedding], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its pages would become resident."""
    plain, rows = pair
    expected = plain(torch.tensor([3, 49, 0]))
    monkeypatch.setattr(nn.Embedding, "forward", forget)
    assert torch.equal(rows(torch.tensor([3, 49, 0])), expected)


def test_a_changed_weight_wins(pair: tuple[nn.Embedding, FileEmbedding]) -> None:
    """Written to, replaced, cast."""
    _, rows = pair
    ids = torch.tensor([1, 2])
    with torch.no_grad():
        rows.weight[1] = 5
    assert rows(ids)[0].eq(5).all()
    assert rows.float()(ids).dtype == torch.float32
    rows.weight = nn.Parameter(torch.zeros(50, 24))
    assert rows(ids).eq(0).all()


def test_gradients_reach_the_weight(pair: tuple[nn.Embedding, FileEmbedding]) -> None:
    """When they are asked for."""
    _, rows = pair
    rows.weight.requires_grad_(True)
    rows(torch.tensor([4])).sum().backward()
    assert rows.weight.grad is not None and rows.weight.grad[4].eq(1).all()


def test_copies_stand_alone(pair: tuple[nn.Embedding, FileEmbedding]) -> None:
    """A copy has no file."""
    plain, rows = pair
    twin = copy.deepcopy(rows)
    assert twin.rows is None and torch.equal(twin(torch.tensor([7])), plain(torch.tensor([7])))


def test_ids_outside_are_refused(pair: tuple[nn.Embedding, FileEmbedding]) -> None:
    """As by every embedding; never bytes of something else."""
    for wrong in (-1, 50):
        with pytest.raises(IndexError):
            pair[1](torch.tensor([wrong]))


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    """Is an error, not zeros."""
    path = tmp_path / "short"
    path.write_bytes(b"z" * 30)
    with path.open("rb") as stream:
        rows = RowFile(stream.fileno(), 0, 16)
    with pytest.raises(OSError, match="cut short"):
        rows.read([0, 1])
