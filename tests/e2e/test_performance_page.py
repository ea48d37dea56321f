"""docs/performance.md says what the committed results say, and the comparison with llama.cpp judges as it should."""

from __future__ import annotations

import json
import runpy
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "benchmarks" / "make_performance_table.py"
PHASE = {"seconds": 2.0, "runs": [2.0], "gb_s": 20.0, "top_s": 0.5, "share": 0.5}
REPORT = {
    "benchmark": "pixtral bench",
    "date": "2026-01-31T10:00:00+00:00",
    "machine": {"cpu": "a CPU", "features": ["AVX2"], "threads": 2, "kernels": "avx2", "torch": "2.13.0"},
    "model": {
        "name": "mid",
        "weights": "random",
        "dtype": "bfloat16",
        "layers": 4,
        "of_layers": 16,
        "quantization": {"bits": 4, "quantize_vision": True, "activations": "int8"},
    },
    "settings": {
        "images": [512],
        "prompt": 1056,
        "new": 4,
        "contexts": [1100],
        "memory_context": 4096,
        "repeat": 1,
        "kv_cache": "int8",
    },
    "ceilings": {"read_gb_s": 40.0, "int8_top_s": 0.9, "bf16_top_s": 0.45, "measured_with": "avx2"},
    "figures": {
        "load": {"seconds": 30.0, "peak_gb": 8.0},
        "image": [{"side": 512, "limit": "bf16", **PHASE}],
        "prompt": {"tokens": 1056, "tokens_per_second": 28.44, "limit": "int8", **PHASE},
        "first_token": [{"side": 512, "tokens": 1076, "tokens_per_second": 5.0, "limit": "mixed", **PHASE}],
        "new": [{"context": 1100, "tokens": 1, "tokens_per_second": 4.56, "limit": "read", **PHASE}],
        "memory": {"context": 4096, "peak_gb": 3.0, "own_gb": 2.0, "mapped_gb": 1.0, "all_layers_peak_gb": 8.25},
    },
}


def make(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [str(MAKE), *map(str, words)])
    runpy.run_path(str(MAKE), run_name="__main__")


def test_the_page_is_up_to_date(monkeypatch, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    make(monkeypatch, "--page", page, "--plot", tmp_path / "plot.svg")
    assert page.read_text() == (ROOT / "docs" / "performance.md").read_text(), f"run: python {MAKE.relative_to(ROOT)}"


def test_tables_and_plot(monkeypatch, tmp_path):
    result, page, plot = (tmp_path / name for name in ("result.json", "page.md", "plot.svg"))
    result.write_text(json.dumps(REPORT))
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    for _ in range(2):  # the second time changes nothing
        make(monkeypatch, result, "--page", page, "--plot", plot)
    text = page.read_text()
    assert text.count("**mid, random weights, int4, tower in 8 bits, cache in int8, 4 of 16 layers, scaled**") == 1
    assert "| prompt, 1,056 tokens | 28.4 tokens/s | 20.0 | 0.500 | 50% of int8 |" in text
    assert "| resident while answering, 4,096 tokens in the cache | 8.25 GB | | | |" in text
    assert (
        "`pixtral bench --shape mid --random --quantization int4 --quantize-vision --kv-cache int8 --layers 4 "
        "--image 512 --context 1100 --prompt 1056 --new 4 --repeat 1`" in text
    )
    drawn = "".join(xml.etree.ElementTree.parse(plot).getroot().itertext())
    assert "new tokens, context 1,100  (4.56 tokens/s)" in drawn
    assert "50 %" in drawn


def test_a_comparison_is_judged_by_the_median_of_the_rounds():
    compare = runpy.run_path(str(ROOT / "benchmarks" / "compare_llamacpp.py"))["compare"]

    def peer(prompt):
        return {
            "prompt": {"tokens_per_second": prompt},
            "new": {"tokens_per_second": 4.2},
            "image": {"seconds": 8.0},
            "first_token": {"seconds": 100.0},
        }

    rows = {row["phase"]: row for row in compare([REPORT] * 3, [REPORT] * 3, [peer(10.0), peer(20.0), peer(9.0)])}
    assert rows["prompt"]["ratio"] == pytest.approx(2.844)
    assert rows["prompt"]["theirs"] == 10.0
    verdicts = {phase: row["verdict"] for phase, row in rows.items()}
    assert verdicts == {
        "prompt": "reached",
        "new": "reached",
        "image": "aim reached",
        "image_8bit": "reached",
        "first_token": "aim reached",
    }
    figures: Any = REPORT["figures"]
    slow = [{**REPORT, "figures": {**figures, "first_token": [{"seconds": 43.0}]}}]
    assert compare(slow, slow, [peer(10.0)])[-1]["verdict"] == "MISSED"
