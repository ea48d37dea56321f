"""The clients in examples/ run against a server, and the documents about it say what is the case."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from pixtral.assets import demo_image_path

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(live, monkeypatch, capsys):
    """Run an example; what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), f"{live.url}/v1"])
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_chat(run, tiny):
    expected = tiny.chat("Describe the picture.", demo_image_path())
    lines = run("client_chat", demo_image_path()).splitlines()
    tokens = expected.usage
    assert lines == [expected.text, f"{tokens.prompt_tokens} prompt tokens ({tokens.image_tokens} of them image)"]


def test_stream(run, tiny):
    expected = tiny.chat("What can you see?", max_new_tokens=100)
    text, cost = run("client_stream", "What can you see?").rsplit("\n", 2)[:2]
    assert (text, cost) == (expected.text, f"{expected.usage.completion_tokens} new tokens")


def test_schema(run):
    lines = run("client_schema", demo_image_path()).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch("(red|green|blue|yellow|black|white) (circle|square|triangle|star)", line)


def test_tools(run):
    call, *answer = run("client_tools").splitlines()
    width, height, area = map(
        int, re.fullmatch(r'area\({"width": ?(-?\d+), ?"height": ?(-?\d+)}\) = (-?\d+)', call).groups()
    )
    assert area == width * height
    assert answer


def test_the_page_about_serving_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "generate_serving.py"))["page"]
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert text == page(text), "python docs/generate_serving.py"
