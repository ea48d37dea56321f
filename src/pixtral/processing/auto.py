"""Which tokenizer a folder gets: tokenizer.json, or Mistral's own file through mistral-common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pixtral.errors import PromptError
from pixtral.hub import resolve
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.huggingface_files import FILES
from pixtral.text.mistral import MistralCommonTokenizer
from pixtral.text.mistral_files import NoTokenizer, has_tokenizer_file, listing
from pixtral.text.templates import find_template

Layout = Literal["hf", "mistral"]
MODES = ("auto", "hf", "mistral")
PATTERNS = (*FILES, "preprocessor_config.json", "params.json", "tekken.json", "*.model", "*.model.v*")


def choose_layout(folder: Path, tokenizer_mode: str = "auto") -> Layout:
    """ "hf" for tokenizer.json, "mistral" for tekken.json or *.model.v*.

    With both, "auto" takes tokenizer.json, unless it has no chat template, without which it cannot hold a conversation.

    Raises:
        NoTokenizer: the folder has none, or not the one asked for; the message lists what is there.
        PromptError: an unknown mode.
    """
    if tokenizer_mode not in MODES:
        raise PromptError(f"tokenizer_mode is {tokenizer_mode!r}; expected one of {', '.join(map(repr, MODES))}")
    hf, mistral = (folder / "tokenizer.json").is_file(), has_tokenizer_file(folder)
    if tokenizer_mode == "hf" or (hf and tokenizer_mode == "auto" and not (mistral and find_template(folder) is None)):
        found: Layout | None = "hf" if hf else None
    else:
        found = "mistral" if mistral else None
    if found is None:
        wanted = {"hf": "tokenizer.json", "mistral": "tekken.json or *.model.v*"}
        missing = wanted.get(tokenizer_mode, "tokenizer.json, tekken.json or *.model.v*")
        raise NoTokenizer(
            f"{folder} has no tokenizer ({missing}); it holds: {listing(folder)}. "
            "Copy the model's tokenizer files there"
        )
    return found


class AutoTokenizer:
    """Chooses the tokenizer by the files of a folder or Hub id."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is not made by itself; use AutoTokenizer.from_pretrained(folder_or_hub_id)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        tokenizer_mode: str = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> HuggingFaceTokenizer | MistralCommonTokenizer:
        """A HuggingFaceTokenizer or a MistralCommonTokenizer.

        Args:
            tokenizer_mode: "auto", or "hf" or "mistral" to insist on one where a folder has both.
            options: for the tokenizer's own from_pretrained (padding_side, model_max_length, ...).

        Raises:
            NoTokenizer: the folder has no tokenizer; the message lists what is there.
        """
        options = {key: value for key, value in options.items() if key not in ("trust_remote_code", "use_fast")}
        folder = resolve(
            pretrained_model_name_or_path,
            patterns=PATTERNS,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        if choose_layout(folder, tokenizer_mode) == "hf":
            return HuggingFaceTokenizer.from_pretrained(folder, **options)
        return MistralCommonTokenizer.from_pretrained(folder, **options)
