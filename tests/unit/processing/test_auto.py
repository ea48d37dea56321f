"""Which tokenizer a folder gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokens import LARGE, copy_of, small_hf, small_tekken

from pixtral.errors import CheckpointError, PromptError, UnknownArgument
from pixtral.processing import AutoProcessor
from pixtral.processing.auto import AutoTokenizer, choose_layout
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer


def test_the_files_decide(tmp_path: Path) -> None:
    assert isinstance(AutoTokenizer.from_pretrained(small_hf(), use_fast=True), HuggingFaceTokenizer)
    assert isinstance(AutoTokenizer.from_pretrained(small_tekken(), padding_side="right"), MistralCommonTokenizer)
    shutil.copy(LARGE, tmp_path / "tokenizer.model.v7m1")
    (tmp_path / "config.json").write_text("{}")
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), MistralCommonTokenizer)


def test_with_both_the_mode_decides(tmp_path: Path) -> None:
    folder = copy_of(small_hf(), tmp_path / "both")
    shutil.copy(small_tekken() / "tekken.json", folder)
    assert choose_layout(folder) == choose_layout(folder, "hf") == "hf"
    assert choose_layout(folder, "mistral") == "mistral"
    (folder / "chat_template.jinja").unlink()
    assert choose_layout(folder) == "mistral", "a tokenizer.json without a template cannot hold a conversation"
    assert choose_layout(folder, "hf") == "hf"


@pytest.mark.parametrize("folder", [small_hf, small_tekken])
def test_a_misspelt_argument_is_named(folder: Callable[[], Path]) -> None:
    with pytest.raises(UnknownArgument, match=r"unknown argument 'padding_sidee'; did you mean 'padding_side'"):
        AutoProcessor.from_pretrained(folder(), padding_sidee="left")
    with pytest.raises(UnknownArgument, match=r"from_pretrained\(\) got an unknown argument 'use_fats'.*'use_fast'"):
        AutoProcessor.from_pretrained(folder(), use_fats=True)


def test_the_tokenizer_knows_where_it_comes_from() -> None:
    for folder, fast in ((small_hf(), True), (small_tekken(), False)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.name_or_path == str(folder)
        assert tokenizer.is_fast is fast


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for mode, missing in (
        ("auto", "tokenizer.json, tekken.json"),
        ("hf", "tokenizer.json"),
        ("mistral", "tekken.json"),
    ):
        with pytest.raises(CheckpointError, match=rf"no tokenizer \({missing}.*it holds: config.json") as found:
            AutoTokenizer.from_pretrained(tmp_path, tokenizer_mode=mode)
        assert isinstance(found.value, ValueError) and isinstance(found.value, OSError)
    with pytest.raises(PromptError, match="tokenizer_mode is 'slow'"):
        AutoTokenizer.from_pretrained(tmp_path, tokenizer_mode="slow")
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoTokenizer()
