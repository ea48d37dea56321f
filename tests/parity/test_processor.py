"""PixtralProcessor beside the recorded outputs of transformers' (record_processor.py says how they were made)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from processor_cases import CALLS, CHATS, REFUSED, make_images
from tokens import small_hf, small_tekken

from pixtral.processing import AutoProcessor, PixtralProcessor

RECORDED = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "processor" / "cases.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def processor() -> PixtralProcessor:
    return AutoProcessor.from_pretrained(small_hf())


def same(found: Any, recorded: dict[str, Any]) -> None:
    assert set(found) == {"pixel_values" if key == "pixels" else key for key in recorded}
    for key, expected in recorded.items():
        if key == "pixels":
            shape, total = expected
            assert list(found["pixel_values"].shape) == shape and found["pixel_values"].dtype == torch.float32
            assert float(found["pixel_values"].double().sum()) == pytest.approx(total, abs=0.5)
        else:
            assert found[key].tolist() == expected, key


@pytest.mark.parametrize("index", range(len(CALLS)))
def test_calls(processor: PixtralProcessor, index: int) -> None:
    same(processor(**make_images(CALLS[index])), RECORDED["calls"][index])


@pytest.mark.parametrize("index", range(len(CHATS)))
def test_chats(processor: PixtralProcessor, index: int) -> None:
    chat = make_images(CHATS[index])
    same(processor.apply_chat_template(**chat, tokenize=True, return_dict=True), RECORDED["chats"][index])


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_refusals(processor: PixtralProcessor, index: int) -> None:
    assert RECORDED["refused"][index] is not None
    with pytest.raises(ValueError, match=r"\w+"):
        processor(**make_images(REFUSED[index]))


def test_numbers_of_tokens(processor: PixtralProcessor) -> None:
    for height, width, tokens in RECORDED["tokens"]:
        assert processor._get_num_multimodal_tokens([(height, width)]).num_image_tokens == [tokens]


@pytest.mark.parametrize("index", [0, 1, 3, 4, 5])
def test_both_layouts_give_the_same_ids(processor: PixtralProcessor, index: int) -> None:
    """mistral-common's prompts and its template's are the same where no rule of the first is missing in the second."""
    native = AutoProcessor.from_pretrained(small_tekken())
    chat = make_images(CHATS[index])
    found, expected = (p.apply_chat_template(**chat, tokenize=True, return_dict=True) for p in (native, processor))
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert ("image_sizes" in found) == ("image_sizes" in expected)
    if "image_sizes" in found:
        assert torch.equal(found["image_sizes"], expected["image_sizes"])
