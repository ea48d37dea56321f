"""A folder in the making: gone after a failure, whole after a success, cleaned after a kill, one writer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixtral.checkpoints.save import staging
from pixtral.errors import CheckpointError


def test_it_becomes_the_target_at_once(tmp_path: Path) -> None:
    with staging(tmp_path / ".making") as place:
        (place.folder / "a").write_text("1")
        (place.folder / "b").write_text("2")
        assert not (tmp_path / "out").exists()
        place.become(tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staging(tmp_path / ".making") as place:
        (place.folder / "a").write_text("1")
        place.become(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, None])
def test_otherwise_nothing_is_left(error: type[BaseException] | None, tmp_path: Path) -> None:
    def run() -> None:
        with staging(tmp_path / ".making") as place:
            (place.folder / "a").write_text("1")
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_first(tmp_path: Path) -> None:
    (tmp_path / ".making").mkdir()
    (tmp_path / ".making" / "half").write_text("x")
    (tmp_path / ".making" / ".lock").write_text("")
    with staging(tmp_path / ".making") as place:
        assert [path.name for path in place.folder.iterdir()] == [".lock"]


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with staging(tmp_path / ".making") as place:
        (place.folder / "a").write_text("1")
        with (
            pytest.raises(CheckpointError, match=r"another process is writing into .*\.making; wait for it"),
            staging(tmp_path / ".making"),
        ):
            pytest.fail("entered")
        assert (place.folder / "a").read_text() == "1"
