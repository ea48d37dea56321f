"""`pixtral estimate`, and models that do not fit into memory, on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import pixtral
from pixtral.assets import demo_image_path, tiny_path
from pixtral.cli.main import app
from pixtral.cli.options import memory_limits

IMAGE = str(demo_image_path())
QUESTION = "How many shapes are there?"


def cli(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def test_estimate() -> None:
    done = cli("estimate", "--shape", "pixtral-12b", "-i", "512x512", "-i", IMAGE, "--quantization", "int4")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "pixtral-12b: int4 and bfloat16, context of 4,096 tokens"
    rows = [line.split() for line in lines]
    assert ["512x512", "512", "x", "512", "512", "x", "512", "32", "rows", "x", "32", "1,056"] in rows
    assert [IMAGE, "144", "x", "112", "144", "x", "112", "7", "rows", "x", "9", "70"] in rows
    assert "1,126 image tokens leave room for 2,970 of text and answer" in lines
    assert any(row[:2] == ["decoder", "5.6"] for row in rows)
    assert lines[-1].startswith("on the disk 25.4 GB (8.5 GB when saved again); in memory it ")


def test_estimate_as_json() -> None:
    done = cli("estimate", tiny_path(), "-i", IMAGE, "--context", 200, "--kv-cache", "int8", "--batch", 2, "--json")
    found = json.loads(done.stdout)
    same = pixtral.estimate(tiny_path(), images=[IMAGE], context=200, kv_cache="int8", batch=2)
    assert found["images"][0] == {**same.to_dict()["images"][0], "name": IMAGE}
    assert {key: found[key] for key in ("cache", "total", "disk", "image_tokens", "text_room")} == {
        key: same.to_dict()[key] for key in ("cache", "total", "disk", "image_tokens", "text_room")
    }


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--shape", "pixtral-1b"], 1, "error: shape is 'pixtral-1b'; expected one of"),
        (["/nowhere"], 1, "error: no folder '/nowhere'"),
        (["--quantization", "int3"], 1, "error: quantization is 'int3'"),
        (["-i", "0x5"], 2, "an image has at least 1x1 pixels"),
        (["-i", "nowhere.png"], 1, "nowhere.png"),
        (["--context", "0"], 2, "context"),
    ],
)
def test_estimates_that_cannot_be(words: list[str], code: int, says: str) -> None:
    done = cli("estimate", *words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr


def test_an_answer_from_the_disk(tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    expected = cli("chat", "-i", IMAGE, QUESTION).stdout
    limits = ("--max-memory", "cpu=3MB", "--offload-folder", tmp_path)
    done = cli("chat", "-i", IMAGE, *limits, QUESTION)
    assert (done.exit_code, done.stdout, done.stderr) == (0, expected, "")


def test_limits_on_memory() -> None:
    assert memory_limits(["cpu=8GiB", "0=10GB"]) == {"cpu": "8GiB", 0: "10GB"}
    assert memory_limits(None) is memory_limits([]) is None
    for wrong in ("cpu", "=8GB", "cpu="):
        done = cli("chat", "--max-memory", wrong, QUESTION)
        assert done.exit_code == 2
        assert "expected DEVICE=SIZE, for example cpu=8GiB" in " ".join(done.stderr.split())
    done = cli("chat", "--max-memory", "cpu=lots", QUESTION)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "max_memory['cpu'] is 'lots'; expected a number of bytes" in done.stderr


def test_a_model_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: 3_000_000)
    done = cli("chat", QUESTION)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "error: the model needs 5.7 MB in bfloat16, but 3.0 MB are available on cpu; " in done.stderr
    assert 'device_map="auto" with offload_folder=... keeps up to 2.7 MB in memory' in done.stderr
