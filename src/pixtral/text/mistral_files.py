"""Finding and opening Mistral's tokenizer files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pixtral.errors import CheckpointError, PromptError
from pixtral.hub import saving

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

_SENTENCEPIECE = re.compile(r".*\.model(?:\.v(?P<version>\d+)(?:m(?P<multimodal>\d+))?)?")


class MissingTokenizerFile(CheckpointError, FileNotFoundError):
    """A tokenizer's file is not where it was."""


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


def listing(folder: Path, limit: int = 20) -> str:
    """The names of the files in a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def load_tokenizer(path: Path, mode: object) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    """Open a tokenizer file with mistral-common and replace its image encoder, which needs OpenCV, by our own.

    Args:
        path: a tekken.json (any name with "tekken" in it and ".json" behind), or a SentencePiece file.
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
        ours: Any = NativeImageEncoder(encoder.image_config, encoder.special_ids)
        tokenizer.instruct_tokenizer.image_encoder = ours
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
