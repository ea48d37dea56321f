"""docs/structured.md: its examples are honoured, its numbers are the program's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from pixtral.structured import formats, guide, tools
from pixtral.structured.grammars import Grammars

PAGE = (Path(__file__).parents[2] / "docs" / "structured.md").read_text(encoding="utf-8")
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: next(iter(example)))
def test_examples(live, example):
    body = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 300, **example}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == ("tool_calls" if "tools" in example else "stop")


def test_there_are_examples():
    kinds = {next(iter(e.get("structured_outputs") or {e["response_format"]["type"]: 0})) for e in EXAMPLES[:-1]}
    assert kinds == {"json_object", "json_schema", "json", "regex", "choice", "grammar"}


def test_numbers(live):
    assert f"{formats.MAX_BYTES // 1024} KB, {formats.MAX_DEPTH} levels, {formats.MAX_PROPERTIES:,} properties" in PAGE
    assert f"{formats.MAX_TEXT:,} characters; {formats.MAX_CHOICES:,} choices" in PAGE
    assert f"{tools.MAX_TOOLS}; {tools.MAX_CALLS} calls" in PAGE
    steps, spare = 1000 * guide.STEP_SECONDS, 1000 * guide.SPARE_SECONDS
    assert f"{steps:g} ms a step, and {spare:g} ms beyond" in PAGE
    defaults = Grammars.__init__.__kwdefaults__
    assert f"{defaults['max_entries']}, and {defaults['max_chars'] // 2**20} MB" in PAGE
    assert "up to 16 blanks" in PAGE and "{0,16}" in formats.WHITE_SPACE
