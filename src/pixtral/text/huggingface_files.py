"""Reading and writing the files of a Hugging Face tokenizer: tokenizer.json and the settings beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral.errors import CheckpointError
from pixtral.hub import saving
from pixtral.text.mistral_files import NoTokenizer, listing
from pixtral.text.padding import NO_LIMIT, VERY_LARGE
from pixtral.text.templates import find_template

if TYPE_CHECKING:
    import tokenizers

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


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say: the tokenizer, its named special tokens, and its settings (constructor arguments)."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str | None]
    options: Mapping[str, Any]


def read_files(folder: Path) -> TokenizerFiles:
    """The tokenizer of a folder.

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
    config = read_json(folder / "tokenizer_config.json")
    named = {**config, **read_json(folder / "special_tokens_map.json")}
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


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
