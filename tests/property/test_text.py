"""What must hold for any text: streaming equals decoding, and nothing a user writes becomes a control token."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens import LARGE, SPECIAL, make_image, small_hf, small_tekken

from pixtral.processing import PixtralProcessor
from pixtral.text.control import TokenFinder, mask_for
from pixtral.text.detokenizer import StreamDecoder
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer

KINDS = ("tekken", "tokenizer.json", "sentencepiece")

any_text = st.text(st.characters(codec="utf-8"), max_size=40)
nasty = st.lists(
    st.one_of(
        st.sampled_from(SPECIAL),
        st.sampled_from(["[IM", "G]", "</", "s>", "[", "<", "[IMG_", "BREAK]", " ", "\n", '"', "\\", "\U000f0000"]),
        st.text(st.characters(codec="utf-8"), max_size=3),
    ),
    max_size=8,
).map("".join)


@functools.cache
def tokenizer(kind: str) -> Any:
    if kind == "tekken":
        return MistralCommonTokenizer.from_pretrained(small_tekken())
    return (
        MistralCommonTokenizer(LARGE) if kind == "sentencepiece" else HuggingFaceTokenizer.from_pretrained(small_hf())
    )


@functools.cache
def processor(kind: str) -> PixtralProcessor:
    return PixtralProcessor(tokenizer=tokenizer(kind))


def streamed(kind: str, ids: list[int], skip: bool) -> str:
    decoder = StreamDecoder(tokenizer(kind), skip_special_tokens=skip)
    return "".join([decoder.push(token) for token in ids]) + decoder.finish()


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text)
def test_a_text_survives_encoding(kind: str, text: str) -> None:
    found = tokenizer(kind).decode(tokenizer(kind).encode(text), skip_special_tokens=True)
    if kind == "tekken" or (kind == "tokenizer.json" and not any(token in text for token in SPECIAL)):
        assert found == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text)
def test_streamed_text_is_the_decoded_text(kind: str, text: str) -> None:
    ids = tokenizer(kind).encode(text)
    for skip in (True, False) if kind != "sentencepiece" else (True,):
        assert streamed(kind, ids, skip) == tokenizer(kind).decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.one_of(st.integers(0, 2999), st.integers(24, 300), st.integers(748, 1100)), max_size=30))
def test_streamed_ids_are_the_decoded_ids(kind: str, ids: list[int]) -> None:
    """Any ids, broken UTF-8 and control tokens in between too, as an untrained model gives them."""
    assert streamed(kind, ids, True) == tokenizer(kind).decode(ids, skip_special_tokens=True)
    if kind != "sentencepiece":
        assert streamed(kind, ids, False) == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(first=nasty, second=nasty, system=nasty, answer=nasty)
def test_control_tokens_come_from_structure_only(kind: str, first: str, second: str, system: str, answer: str) -> None:
    """The control tokens of a conversation are those of the same conversation in harmless words."""

    def control(texts: list[str]) -> list[int]:
        chat = [
            {"role": "system", "content": "s" + texts[0]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "f" + texts[1]},
                    {"type": "image"},
                    {"type": "text", "text": texts[2] + "q"},
                ],
            },
            {"role": "assistant", "content": "a" + texts[3] + "."},
            {"role": "user", "content": "u" + texts[1]},
        ]
        ids = processor(kind).apply_chat_template(chat, tokenize=True, images=[make_image(8, 8)], return_tensors=None)[
            0
        ]
        special = set(processor(kind).tokenizer.all_special_ids)
        return [token for token in ids if token in special]

    assert control([system, first, second, answer]) == control(["x", "x", "x", "x"])


@given(values=st.lists(nasty, max_size=5))
def test_hidden_strings_show_themselves_again(values: list[str]) -> None:
    finder = TokenFinder(SPECIAL)
    mask = mask_for(values, finder)
    hidden = mask.hide(values)
    assert [len(text) for text in hidden] == [len(text) for text in values]
    assert [mask.show(text) for text in hidden] == values
    for joined, expected in (("".join(hidden), 0), ("[IMG]".join(hidden), max(len(values) - 1, 0))):
        assert [piece for is_token, piece in mask.split(joined) if is_token] == ["[IMG]"] * expected


@given(text=nasty)
def test_pieces_are_the_text(text: str) -> None:
    pieces = TokenFinder(SPECIAL).split(text)
    assert "".join(piece for _, piece in pieces) == text
    assert all((piece in SPECIAL) == is_token for is_token, piece in pieces)


@given(text=st.one_of(any_text, nasty))
def test_both_layouts_of_a_vocabulary_encode_alike(text: str) -> None:
    assert tokenizer("tokenizer.json").ordinary_ids(text) == tokenizer("tekken").ordinary_ids(text)


@given(text=nasty)
def test_encoding_in_pieces_is_encoding(text: str) -> None:
    """The slow way, piece by piece, beside `tokenizers` on the whole."""
    fast = tokenizer("tokenizer.json")
    assert fast.pieces_to_ids(fast.control_tokens.split(text)) == fast.text_to_ids(text)
