"""Folders in which a checkpoint comes into being, so that a run that fails or is killed leaves no half one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pixtral.errors import CheckpointError

_LOCK = ".lock"


class Staging:
    """A folder to write into; its finished files are moved out one by one, or all together by `become`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moved = False

    def become(self, target: Path) -> None:
        """Take the name of a folder that is not there or empty; nobody ever sees it half full."""
        (self.folder / _LOCK).unlink()
        os.replace(self.folder, target)
        self.moved = True


@contextmanager
def staging(folder: Path) -> Iterator[Staging]:
    """A folder to write into that is gone at the end, unless it took another name.

    What a killed run left there is removed first.

    Raises:
        CheckpointError: another process is writing there.
    """
    folder.mkdir(exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        _claim(lock, folder)
        made = Staging(folder)
        try:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    path.unlink()
            yield made
        finally:
            if not made.moved:
                shutil.rmtree(folder, ignore_errors=True)


def _claim(lock: IO[str], folder: Path) -> None:
    """Lock a folder until `lock` is closed or the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are not noticed
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CheckpointError(
            f"another process is writing into {folder}; wait for it, or choose another place"
        ) from error
