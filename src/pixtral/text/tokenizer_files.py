"""Tokenizer files: Mistral's tekken.json and SentencePiece files, Hugging Face's tokenizer.json and its settings."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pixtral.errors import CheckpointError, PromptError
from pixtral.hub import listing, read_json, saving
from pixtral.text.padding import NO_LIMIT, VERY_LARGE
from pixtral.text.templates import find_template

if TYPE_CHECKING:
    import tokenizers
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer


FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_OPTIONS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "add_bos_token",
    "add_eos_token",
)

_SENTENCEPIECE = re.compile(r".*\.model(?:\.v(?P<version>\d+)(?:m(?P<multimodal>\d+))?)?")


class MissingTokenizerFile(CheckpointError, FileNotFoundError):
    """A tokenizer's file does not exist, or no longer."""


class NoTokenizer(CheckpointError, PromptError):
    """A folder without a tokenizer."""


def has_tokenizer_file(folder: Path) -> bool:
    """Whether there is a tekken.json or a SentencePiece file."""
    return (folder / "tekken.json").is_file() or any(_sentencepiece_files(folder))


def find_tokenizer_file(folder: Path) -> Path:
    """The tekken.json of a folder, else its SentencePiece file of the highest version.

    Raises:
        NoTokenizer: there is neither; the message lists the files that are there.
    """
    if (tekken := folder / "tekken.json").is_file():
        return tekken
    found = _sentencepiece_files(folder)
    if not found:
        raise NoTokenizer(
            f"{folder} has no tekken.json and no *.model.v* file; it holds: {listing(folder)}. "
            "Copy the model's tokenizer file there"
        )
    return max(found)[-1]


def load_tokenizer(path: Path, mode: object) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    """Open a tokenizer file with mistral-common, with `NativeImageEncoder` in place of its encoder, which needs OpenCV.

    Args:
        path: a tekken.json (any name that contains "tekken" and ends with ".json"), or a SentencePiece file.
        mode: "test", "finetuning", ... or a mistral-common ValidationMode.

    Raises:
        PromptError: an unknown mode.
        CheckpointError: the file is missing, or mistral-common cannot read it.
    """
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    from pixtral.text.mistral_images import NativeImageEncoder

    modes: dict[str, Any] = {member.value: member for member in cast("Any", ValidationMode)}
    name = getattr(mode, "value", mode)
    if name not in modes:
        raise PromptError(f"mode is {mode!r}; expected one of {', '.join(map(repr, modes))}")
    if not path.is_file():
        raise MissingTokenizerFile(f"{path} is not a file; give the path of a tekken.json or a *.model.v* file")
    try:
        tokenizer = MistralTokenizer.from_file(str(path), mode=modes[name])
    except (MistralCommonException, ValueError, KeyError, TypeError, AssertionError, OSError, RuntimeError) as error:
        kind = "not valid JSON" if isinstance(error, json.JSONDecodeError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} cannot be read as a Mistral tokenizer ({kind}); fetch the file again") from error
    encoder = tokenizer.instruct_tokenizer.image_encoder
    if encoder is not None:
        replacement: Any = NativeImageEncoder(encoder.image_config, encoder.special_ids)
        tokenizer.instruct_tokenizer.image_encoder = replacement
    return tokenizer


def save_tokenizer_file(path: Path, folder: Path, name: str) -> str:
    """Copy a tokenizer file into a folder, which is made if need be; returns the copy's path."""
    if not path.is_file():
        raise MissingTokenizerFile(f"the tokenizer's file {path} is gone, so it cannot be copied")
    target = folder / name
    with saving(folder):
        if not (target.exists() and target.samefile(path)):
            shutil.copyfile(path, target)
    return str(target)


def _sentencepiece_files(folder: Path) -> list[tuple[int, int, str, Path]]:
    """(version, multimodal version, name, path) of each SentencePiece file."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _SENTENCEPIECE.fullmatch(path.name)) and path.is_file():
            version, multimodal = match["version"], match["multimodal"]
            found.append((int(version or 0), int(multimodal or 0), path.name, path))
    return found


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of the files: the tokenizer, its named special tokens, and its settings (constructor arguments)."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str | None]
    options: Mapping[str, Any]


def read_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json and the settings beside it.

    Raises:
        NoTokenizer: there is no tokenizer.json.
        CheckpointError: a file is damaged.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise NoTokenizer(
            f"{folder} has no tokenizer.json; it holds: {listing(folder)}. Copy the model's tokenizer files there"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        if type(error) is not Exception:  # `tokenizers` raises exactly this class for every fault of the file
            raise
        raise CheckpointError(f"{path} cannot be read as a tokenizer ({error}); fetch the file again") from error
    config, special_map = (
        read_json(folder / name, error=CheckpointError, missing_ok=True)
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    named = {**config, **special_map}
    special = {name: _content(named.get(name)) for name in _NAMED}
    _add_missing(backend, config, named, special)
    options = {name: config[name] for name in _OPTIONS if config.get(name) is not None}
    if options.get("model_max_length", 0) > NO_LIMIT:
        options["model_max_length"] = VERY_LARGE
    return TokenizerFiles(backend, special, {**options, "chat_template": find_template(folder)})


def write_files(files: TokenizerFiles, folder: Path) -> tuple[str, ...]:
    """Write what `read_files` reads; returns the paths."""
    options = {key: value for key, value in files.options.items() if value is not None}
    template = options.pop("chat_template", None)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **options, **files.special_tokens}
    paths = [folder / name for name in FILES[:3]]
    with saving(folder):
        paths[0].write_text(files.backend.to_str(pretty=True), encoding="utf-8")
        for path, value in zip(paths[1:], (config, dict(files.special_tokens)), strict=True):
            path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if template is not None:
            paths.append(folder / "chat_template.jinja")
            paths[-1].write_text(template, encoding="utf-8")
    return tuple(map(str, paths))


def _content(token: Any) -> str | None:
    """A token's text, which the files write as a string or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return None if token is None else str(token)


def _add_missing(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    named: Mapping[str, Any],
    special: Mapping[str, str | None],
) -> None:
    """Add the tokens that the settings name and tokenizer.json lacks, in the order of their ids."""
    import tokenizers

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted((int(i), entry) for i, entry in (config.get("added_tokens_decoder") or {}).items())
    wanted = [entry for _, entry in listed]
    extra = named.get("additional_special_tokens") or named.get("extra_special_tokens") or []
    wanted += list(extra.values() if isinstance(extra, Mapping) else extra)
    wanted += [token for token in special.values() if token is not None]
    for entry in wanted:
        text = _content(entry)
        if text is None or text in known:
            continue
        flags = (
            {key: entry[key] for key in ("lstrip", "rstrip", "normalized", "single_word") if key in entry}
            if isinstance(entry, Mapping)
            else {}
        )
        is_special = not isinstance(entry, Mapping) or entry.get("special", True)
        backend.add_tokens([tokenizers.AddedToken(text, special=is_special, **flags)])
        known.add(text)
