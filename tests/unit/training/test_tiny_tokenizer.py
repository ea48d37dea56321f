"""The embedded model's tokenizer: readable by mistral-common, equal in both layouts, complete over all of Unicode."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer
from tokens import SPECIAL

from pixtral.training.questions import vocabulary
from pixtral.training.tiny import VOCAB_SIZE
from pixtral.training.tiny_tokenizer import NUM_SPECIAL, SPECIAL_TOKENS, full_tekken, truncated_tekken, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path, vocabulary(), VOCAB_SIZE)
    return path


@pytest.fixture(scope="module")
def tekken(folder):
    return Tekkenizer.from_file(folder / "tekken.json")


@pytest.fixture(scope="module")
def huggingface(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_mistral_common_reads_it_as_version_3_with_images(folder):
    tokenizer = MistralTokenizer.from_file(str(folder / "tekken.json")).instruct_tokenizer
    assert type(tokenizer).__name__ == "InstructTokenizerV3"
    assert tokenizer.tokenizer.n_words == VOCAB_SIZE == 640
    assert tokenizer.image_encoder is not None
    assert tokenizer.image_encoder.image_config.image_patch_size == 16


def test_special_ids_are_those_of_pixtral_12b(tekken, huggingface):
    assert SPECIAL_TOKENS == SPECIAL
    for id, token in enumerate(SPECIAL_TOKENS):
        assert tekken.get_special_token(token) == id == huggingface.token_to_id(token)
    assert tekken.num_special_tokens == NUM_SPECIAL
    assert huggingface.get_vocab_size() == VOCAB_SIZE


def test_words_of_the_questions_are_split_as_full_tekken_splits_them(tekken, tmp_path):
    contents = full_tekken()
    contents["config"]["default_vocab_size"] = len(contents["vocab"]) + 1000  # all that the file lists
    whole = tmp_path / "tekken.json"
    whole.write_text(json.dumps(contents))
    full = Tekkenizer.from_file(whole)
    for text in vocabulary():
        short = [tekken.id_to_byte_piece(i) for i in tekken.encode(text, bos=False, eos=False)]
        assert short == [full.id_to_byte_piece(i) for i in full.encode(text, bos=False, eos=False)]


@given(st.text(max_size=60))
def test_any_text_survives_and_both_layouts_agree(tekken, huggingface, text):
    ids = tekken.encode(text, bos=False, eos=False)
    assert b"".join(tekken.id_to_byte_piece(i) for i in ids) == text.encode()
    if not any(token in text for token in SPECIAL_TOKENS):
        assert huggingface.encode(text, add_special_tokens=False).ids == ids
        assert huggingface.decode(ids) == text


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"found vocab_size=300.*at least \d+ ids"):
        truncated_tekken(vocabulary(), 300)


def test_building_twice_gives_the_same_files(folder, tmp_path):
    write_tokenizer(tmp_path, vocabulary(), VOCAB_SIZE)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
