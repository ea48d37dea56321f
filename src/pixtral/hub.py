"""A model's folder: a local one, or a Hugging Face Hub id fetched into the cache; reading JSON there, and writing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixtral.errors import CheckpointError, ConfigError, PixtralError, listed

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    path_or_id: str | os.PathLike[str],
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder that holds the files of a model.

    An existing folder is returned as it is (an existing file in it is not looked for: callers read what they need).
    Anything else of the form "owner/name" is taken from the Hub, or from its cache when the Hub is out of reach.

    Args:
        path_or_id: a folder, or a Hub id such as "mistralai/Pixtral-12B-2409".
        patterns: which files to fetch, as shell patterns ("*.json"); nothing else is downloaded.
        revision: branch, tag or commit on the Hub; "main" when left out.
        token: access token, True for the stored one, False for none at all.
        cache_dir: where the Hub's files are kept; huggingface_hub's own place when left out.
        local_files_only: use the cache and never the network.
        force_download: fetch again what is cached already.

    Raises:
        CheckpointError: no such folder, not a Hub id, or the Hub refuses or cannot be reached.
    """
    text = os.fspath(path_or_id)
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return folder
    if text and folder.is_file():
        raise CheckpointError(f"{text!r} is a file; expected the folder that holds it, or a Hub id (owner/name)")
    if not _HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"no folder {text!r} here (working directory: {Path.cwd()}), "
            "and it is not a Hub id of the form owner/name; check the path"
        )
    return _fetch(text, list(patterns), revision, token, cache_dir, local_files_only, force_download)


@contextmanager
def saving(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder to write into, created if needed; an OSError inside becomes a CheckpointError."""
    path = Path(folder)
    if path.is_file():
        raise CheckpointError(f"{os.fspath(folder)!r} is a file; expected a folder to save into")
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot write to {path}: {error}; check the path, its rights and the room") from error


def read_json(path: Path, *, error: type[PixtralError] = ConfigError, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file and `missing_ok`.

    Raises:
        PixtralError: an `error`, if the file is missing, is not JSON, or holds something other than an object.
    """
    if not path.is_file():
        if missing_ok:
            return {}
        raise error(f"no {path.name} in {path.parent}; found there: {listing(path.parent)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise error(f"{path} is not valid JSON: {problem}; fetch or write the file again") from problem
    if not isinstance(values, dict):
        raise error(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def listing(folder: Path, count: int = 20) -> str:
    """The names of the files in a folder, for messages."""
    return listed(sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [], count) or "nothing"


def _fetch(
    repo: str,
    patterns: list[str],
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{repo!r}" + (f" at revision {revision!r}" if revision else "")
    looked = f"looked for {', '.join(patterns)} of {where}"
    # The transport (requests, httpx, ...) differs between releases: its base error is a base of HfHubHTTPError.
    transport = tuple(base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception))
    failures: tuple[type[Exception], ...] = (OSError, ValueError, errors.EntryNotFoundError, *transport)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                allow_patterns=patterns,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                local_files_only=local_files_only,
                force_download=force_download,
            )
        )
    except errors.GatedRepoError as error:
        advice = "the model is gated: accept its terms on its page, then pass token=... or run `hf auth login`"
        raise CheckpointError(f"access to {where} is refused; {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = "check the spelling, or pass token=... if it is private; for a local model pass a folder that exists"
        raise CheckpointError(f"no folder and no model on the Hub named {repo!r}; {advice}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repo!r} has no revision {revision!r}; pass a branch, tag or commit it has") from error
    except errors.LocalEntryNotFoundError as error:
        why = "local_files_only=True" if local_files_only else "the Hub cannot be reached"
        advice = "connect and load once without local_files_only, or pass a local folder"
        raise CheckpointError(f"{looked}: not complete in the cache, and {why}; {advice}") from error
    except failures as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{looked}: {reason}; check the connection and the id, or pass a local folder") from error
