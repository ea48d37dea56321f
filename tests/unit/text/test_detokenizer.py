"""Text comes out as early as it is certain, and whole."""

from __future__ import annotations

from typing import Any

import pytest
from tokens import LARGE, small_hf, small_tekken

from pixtral.text.detokenizer import StreamDecoder
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer


@pytest.fixture(scope="module", params=["tekken", "tokenizer.json", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "tokenizer.json":
        return HuggingFaceTokenizer.from_pretrained(small_hf())
    return MistralCommonTokenizer(LARGE if request.param == "sentencepiece" else small_tekken() / "tekken.json")


def pieces(tokenizer: Any, ids: list[int], **options: Any) -> list[str]:
    decoder = StreamDecoder(tokenizer, **options)
    return [*(decoder.push(token) for token in ids), decoder.finish()]


def test_whole_characters_only(tokenizer: Any) -> None:
    text = "日本 🐕 déjà"
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert "".join(found) == text and not any("\ufffd" in piece for piece in found)
    assert sum(piece == "" for piece in found[:-1]) > 0, "some character takes several ids"


def test_ascii_is_not_held_back(tokenizer: Any) -> None:
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert all(found[:-1]) and found[-1] == "" and "".join(found) == "one two three"


def test_what_is_cut_off_shows_at_the_end(tokenizer: Any) -> None:
    ids = tokenizer.encode("ab 🐕", add_special_tokens=False)[:-1]
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True) and found[-1].startswith("\ufffd")


def test_control_tokens_are_shown_or_skipped(tokenizer: Any) -> None:
    ids = [*tokenizer.encode("a", add_special_tokens=False), tokenizer.eos_token_id]
    assert "".join(pieces(tokenizer, ids)) == "a"
    assert "".join(pieces(tokenizer, ids, skip_special_tokens=False)).endswith("a</s>")


def test_a_decoder_starts_anew_after_its_end(tokenizer: Any) -> None:
    decoder = StreamDecoder(tokenizer)
    for _ in range(2):
        ids = tokenizer.encode("x é", add_special_tokens=False)
        assert "".join(map(decoder.push, ids)) + decoder.finish() == "x é"


def test_a_character_broken_by_a_control_token(tokenizer: Any) -> None:
    """mistral-common ends the character there, `tokenizers` joins its bytes over a control token it skips."""
    start, *rest = tokenizer.encode("\U0001f415", add_special_tokens=False)[-4:]
    for ids in ([start, tokenizer.eos_token_id, *rest], [start, rest[0], tokenizer.bos_token_id], [*rest, start, 2, 2]):
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)
