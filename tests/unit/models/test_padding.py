"""Packing and padding: places, positions, attention weights, the loss, and masks that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixtral.errors import PromptError
from pixtral.models.padded import Padding, causal_loss, keep_logits

CPU = torch.device("cpu")
MASK = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 0], [0, 0, 0]])


def padding_of(mask: torch.Tensor) -> Padding:
    return Padding(mask, (mask.shape[0], mask.shape[1]), [0] * len(mask), CPU)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5))
def test_pack_and_pad_are_inverse(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    padding = padding_of(mask)
    x = torch.randn(*mask.shape, 2, 3)
    packed = padding.pack(x)
    assert len(packed) == sum(padding.lengths) == int(mask.sum())
    padded = padding.pad(packed)
    assert padded[mask].equal(x[mask]) and not padded[~mask].any()


def test_positions_count_tokens() -> None:
    padding = padding_of(MASK)
    assert padding.lengths == (2, 3, 1, 0)
    assert padding.positions([0, 0, 0, 0], None).tolist() == [0, 1, 0, 1, 2, 0]
    assert padding.positions([5, 0, 2, 9], None).tolist() == [5, 6, 0, 1, 2, 2]
    given_ids = torch.arange(12).view(4, 3)
    assert padding.positions([5, 0, 2, 9], given_ids).tolist() == [1, 2, 3, 4, 5, 6]
    assert padding.positions([0] * 4, given_ids[:1]).tolist() == [1, 2, 0, 1, 2, 0]
    assert padding.positions([0] * 4, given_ids[0]).tolist() == [1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (4, 1), (4, 3, 1), (2,)])
def test_positions_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match=r"position_ids of shape .*, expected \(4, 3\)"):
        padding_of(MASK).positions([0] * 4, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3,), (1, 1, 2, 3), (3, 3), (2, 2), (0, 3)])
def test_masks_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match=r"attention_mask of shape .* for an input of 2 x 3 tokens; expected one row"):
        Padding(torch.ones(shape), (2, 3), [0, 0], CPU)


def test_masks_must_agree_with_the_cache() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert Padding(mask, (2, 2), [2, 3], CPU).lengths == (1, 2)
    assert Padding(mask[:, 3:], (2, 2), [2, 3], CPU).lengths == (1, 2)  # the new tokens alone
    for earlier in ([2, 2], [0, 0]):
        with pytest.raises(PromptError, match=r"found \[2, 3\] earlier tokens .* holds \[\d, \d\]; pass the mask"):
            Padding(mask, (2, 2), earlier, CPU)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type(kind: torch.dtype) -> None:
    assert padding_of(MASK.to(kind)).lengths == (2, 3, 1, 0)
    assert Padding(None, (2, 3), [0, 0], CPU).lengths == (3, 3)


def test_attention_weights_find_their_places() -> None:
    """Two sequences with one and three earlier tokens in a cache; the earlier columns end where the new ones begin."""
    padding = Padding(torch.tensor([[0, 1], [1, 1]]), (2, 2), [1, 3], CPU)
    weights = [torch.arange(1.0, 3).view(1, 1, 2), torch.arange(1.0, 11).view(1, 2, 5)]
    out = padding.pad_attention(weights, 3)
    assert out[0, 0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 0, 2]]
    assert out[1, 0].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


def test_loss_by_hand() -> None:
    """Labels count where they are not -100 and stand behind a token."""
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = math.log(3)  # 3 / 6 for token 2
    real = torch.tensor([[False, True, True], [True, True, True]])
    labels = torch.tensor([[3, 3, 2], [0, 1, -100]])
    expected = [math.log(2), math.log(4)]  # [0, 1] -> 2 and [1, 0] -> 1
    assert causal_loss(logits, labels, real).item() == pytest.approx(sum(expected) / 2)
    assert causal_loss(logits, labels, real, 10).item() == pytest.approx(sum(expected) / 10)
    assert causal_loss(logits.bfloat16(), labels, real).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (6,)])
def test_labels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match=r"labels of shape .* for logits of \(2, 3, 4\); expected a label for each"):
        causal_loss(torch.zeros(2, 3, 4), torch.zeros(shape, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))


def test_rows_of_logits() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    assert keep_logits(hidden, 0).equal(hidden)
    assert keep_logits(hidden, 2).equal(hidden[:, 1:])
    assert keep_logits(hidden, 9).equal(hidden)
    assert keep_logits(hidden, torch.tensor([2, 0])).equal(hidden[:, [2, 0]])
    assert keep_logits(hidden, torch.tensor([[2], [0]])).equal(torch.stack([hidden[0, 2:], hidden[1, :1]]))
    assert keep_logits(hidden, torch.tensor([[True, False, True], [False, True, False]])).equal(
        torch.stack([hidden[0, 0], hidden[0, 2], hidden[1, 1]])
    )
