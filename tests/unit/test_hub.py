"""Folders and Hub ids: what is returned as it is, what is fetched, and what each failure says."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import fake_hub, use_hub
from tokens import small_hf, small_tekken

from pixtral.configuration import GenerationConfig, LlavaConfig
from pixtral.errors import CheckpointError
from pixtral.hub import resolve, saving
from pixtral.processing import AutoProcessor


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # nobody listens there


def test_a_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path, patterns=["*.json"]) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}", patterns=["*.json"]) == tmp_path


def test_a_folder_that_looks_like_a_hub_id_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("team/model", patterns=["*"]) == Path("team/model")


@pytest.mark.parametrize("name", ["", "model", "./model", "/no/such/folder", "a/b/c", "../x", "team/..", "team/"])
def test_what_is_neither_folder_nor_id_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .* not a Hub id"):
        resolve(name, patterns=["*"])


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file; expected the folder"):
        resolve(file, patterns=["*"])


def test_only_what_is_asked_for_is_fetched_and_then_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repo").mkdir()
    for name in ("config.json", "model.safetensors", "notes.md"):
        (tmp_path / "repo" / name).write_text(name)
    with fake_hub(tmp_path / "repo") as (address, asked):
        use_hub(monkeypatch, address, tmp_path / "cache")
        folder = resolve("team/model", patterns=["*.json"])
        assert asked == ["config.json"]
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        with pytest.raises(CheckpointError, match="no model on the Hub named 'team/other'"):
            resolve("team/other", patterns=["*.json"])
    # the Hub is gone now
    assert resolve("team/model", patterns=["*.json"], local_files_only=True) == folder
    with pytest.raises(CheckpointError, match="local_files_only=True; connect"):
        resolve("team/third", patterns=["*.json"], local_files_only=True)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("RepoNotFound", "no folder and no model on the Hub named 'team/model'; check the spelling"),
        ("GatedRepo", "access to 'team/model' at revision 'v1' is refused; the model is gated"),
        ("RevisionNotFound", "'team/model' has no revision 'v1'"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    with fake_hub(tmp_path, error=code) as (address, _):
        use_hub(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(CheckpointError, match=says):
            resolve("team/model", patterns=["*.json"], revision="v1")


def test_no_connection_says_so() -> None:
    with pytest.raises(
        CheckpointError, match=r"looked for \*.json of 'team/model'.*the Hub cannot be reached; connect"
    ):
        resolve("team/model", patterns=["*.json"])


def test_failures_of_the_transport_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> str:
        raise OSError("disk full\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(CheckpointError, match=r"disk full; check the connection"):
        resolve("team/model", patterns=["*.json"])


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with saving(tmp_path / "a" / "b") as folder:
        assert folder.is_dir()
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CheckpointError, match=r"'.*file' is a file; expected a folder to save into"),
        saving(str(tmp_path / "file")),
    ):
        pass
    with pytest.raises(CheckpointError, match=r"cannot write to .*; check the path"), saving(tmp_path / "file" / "in"):
        pass
    with pytest.raises(CheckpointError, match=r"No space left"), saving(tmp_path / "a"):
        raise OSError(28, "No space left on device")


def test_everything_that_is_saved_says_where_it_cannot_be(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(small_hf())
    native = AutoProcessor.from_pretrained(small_tekken())
    (tmp_path / "file").write_text("x")
    for part in (LlavaConfig(), GenerationConfig(), processor, processor.image_processor, native):
        with pytest.raises(CheckpointError, match=r"cannot write to .*; check the path"):
            part.save_pretrained(tmp_path / "file" / "in")
