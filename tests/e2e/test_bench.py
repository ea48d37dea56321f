"""`pixtral bench` and `pixtral doctor`: tables, JSON, every option, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pixtral
from pixtral.assets import tiny_path
from pixtral.bench.ceilings import Ceilings
from pixtral.cli.main import app

SMALL = ["--prompt", 24, "--new", 2, "--context", 40, "--memory-context", 50, "--repeat", 1, "--image", 32]
RANDOM = ["--shape", "tiny", "--random"]
KERNELS = Path(pixtral.__file__).parent / "ops" / "native" / "_kernels.abi3.so"
PHASE = {"seconds", "runs", "gb_s", "top_s", "limit", "share"}


def command(*words):
    """Run the command in this process, whose number of threads stays what it was."""
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(app, list(map(str, words)))
    finally:
        torch.set_num_threads(threads)


def refusal(result, code=1):
    assert result.exit_code == code
    assert result.stdout == ""
    return result.stderr


class StillMeter:
    """Limits of a machine of the paper: which of them a phase meets first would differ with the CPU and its load."""

    def __init__(self, threads):
        pass

    def ceilings(self):
        return Ceilings(read=1e11, int8=1e12, bf16=5e11, measured_with="paper")

    def read(self):
        return 1e11


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixtral.bench.report.Meter", StillMeter)
        result = command("bench", *RANDOM, *SMALL, "--quantization", "int4", "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_report_of_a_random_model(report):
    assert set(report) == {"benchmark", "schema", "date", "machine", "model", "settings", "ceilings", "figures"}
    assert report["schema"] == 1
    machine = report["machine"]
    assert set(machine) == {
        "cpu",
        "features",
        "cores",
        "threads",
        "kernels",
        "memory_gb",
        "system",
        "python",
        "torch",
        "pixtral",
    }
    assert machine["threads"] == 1
    assert machine["pixtral"] == pixtral.__version__
    model = report["model"]
    assert (model["name"], model["weights"], model["dtype"]) == ("tiny", "random", "bfloat16")
    assert (model["layers"], model["of_layers"]) == (4, 4)
    assert model["quantization"]["bits"] == 4
    assert report["settings"]["images"] == [32]
    assert set(report["ceilings"]) == {"read_gb_s", "int8_top_s", "bf16_top_s", "measured_with"}
    figures = report["figures"]
    assert set(figures) == {"load", "image", "prompt", "first_token", "new", "memory"}
    assert set(figures["image"][0]) == PHASE | {"side"}
    assert set(figures["prompt"]) == PHASE | {"tokens", "tokens_per_second"}
    assert figures["prompt"]["tokens"] == 24
    assert figures["prompt"]["limit"] == "int8"
    assert figures["first_token"][0]["tokens"] == 2 * 3 + 20
    assert figures["new"][0]["context"] == 40
    assert figures["new"][0]["limit"] == "read"
    assert len(figures["new"][0]["runs"]) == 2
    assert all(0 < phase["share"] < 1 for phase in (figures["image"][0], figures["prompt"], figures["new"][0]))
    assert figures["load"]["seconds"] > 0
    if figures["memory"] is not None:
        assert set(figures["memory"]) == {"context", "peak_gb", "own_gb", "mapped_gb"}


def test_the_table_of_the_embedded_model():
    """With the limits of this machine: reading or products of bfloat16, since nothing is quantized."""
    result = command("bench", *SMALL, "--image", 48, "--context", 60)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{tiny_path()}: its own weights, bfloat16, cache bfloat16")
    assert lines[2].startswith("limits: reading ")
    firsts = [line.split("  ")[0] for line in lines]
    for first in ("image 32 x 32", "image 48 x 48", "prompt of 24", "first token, image 48"):
        assert first in firsts
    assert "new tokens after 40" in firsts
    assert "new tokens after 60" in firsts
    assert "loaded in" in firsts
    assert result.stdout.count(" of bf16") + result.stdout.count(" of reading") >= 6


def test_options_reach_the_model(monkeypatch):
    monkeypatch.setattr("pixtral.bench.report.Meter", StillMeter)
    words = ["--quantization", "int8", "--quantize-vision", "--activations", "bf16", "--kv-cache", "bf16"]
    result = command("bench", *RANDOM, *SMALL, "--image", 0, *words, "--layers", 2, "--compute-context", "--json")
    made = json.loads(result.stdout)
    assert made["settings"]["images"] == [32]  # 0 adds none
    assert made["settings"]["kv_cache"] == "bf16"
    assert made["settings"]["compute_context"] is True
    quantization = made["model"]["quantization"]
    assert (quantization["bits"], quantization["quantize_vision"], quantization["activations"]) == (8, True, "bf16")
    assert (made["model"]["layers"], made["model"]["of_layers"]) == (2, 4)
    assert made["figures"]["prompt"]["limit"] == "bf16"
    assert made["figures"]["memory"] is None or made["figures"]["memory"]["all_layers_peak_gb"] > 0
    prompt = made["figures"]["prompt"]
    assert prompt["seconds"] >= prompt["runs"][0]
    text = command("bench", *SMALL[:-2], "--image", 0, "--json")
    assert json.loads(text.stdout)["figures"]["image"] == []


def test_comparing_with_transformers():
    made = json.loads(command("bench", *SMALL, "--compare", "transformers", "--json").stdout)
    peer = made["peer"]
    assert peer["name"] == "transformers"
    assert peer["same_weights"] is True
    assert peer["layers"] == peer["of_layers"]
    assert peer["figures"]["image"][0]["seconds"] > 0
    assert peer["figures"]["prompt"]["tokens"] == 24
    assert len(peer["figures"]["new"][0]["runs"]) == 2


def test_the_comparison_as_a_table():
    result = command("bench", *RANDOM, *SMALL, "--compare", "transformers", "--layers", 3)
    assert "only 3 of 4 layers were there: seconds and tokens/s below are scaled" in result.stdout
    assert "compared with transformers 5" in result.stdout
    assert ", bfloat16, random weights of its own" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[-3:]] == ["image", "prompt", "new"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "pixtral-13b", "--random"], "shape is 'pixtral-13b'"),
        ([*RANDOM, "--threads", 0], "threads is 0; expected 1 or more"),
        ([*RANDOM, "--quantization", "int3"], "quantization is 'int3'"),
        ([*RANDOM, "--quantization", "int4", "--activations", "int7"], "activations is 'int7'"),
        ([*RANDOM, "--quantize-vision"], "quantize_vision=True, but nothing asks to quantize"),
        ([*RANDOM, "--layers", 9], "layers is 9; expected a number from 1 to 4"),
        ([*RANDOM, "--kv-cache", "int5"], "kv_cache is 'int5'"),
        ([*RANDOM, "--prompt", 200000], "prompt with 200000 tokens"),
        (["./nowhere"], "no folder './nowhere'"),
        (["--shape", "pixtral-large", "--random"], "pixtral-large with 88 layers needs 250.3 GB"),
    ],
)
def test_refusals_are_one_line(words, message, monkeypatch):
    monkeypatch.setattr("pixtral.bench.measured_model.available_memory", lambda device: 20_000_000_000)
    said = refusal(command("bench", *words, "--json"))
    assert said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize(
    "words",
    [
        ["--shape", "tiny"],
        ["--random"],
        ["--layers", 2],
        [*RANDOM, "model"],
        [*RANDOM, "--compare", "gpt"],
        [*RANDOM, "--prompt", 0],
        [*RANDOM, "--new", 0],
        [*RANDOM, "--repeat", 0],
        [*RANDOM, "--image", -1],
    ],
)
def test_wrong_usage_is_exit_code_2(words):
    assert "Usage: " in refusal(command("bench", *words), code=2)


def doctor(**environment):
    """In a process of its own: what is broken must not break these tests."""
    done = subprocess.run(
        [sys.executable, "-m", "pixtral.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_the_doctor_of_a_sound_installation():
    result = command("doctor")
    assert result.exit_code == 0
    names = [line[2:16].strip() for line in result.stdout.splitlines() if line[0] in "+!x"]
    assert names == [
        "pixtral",
        "torch",
        "processor",
        "kernels",
        "memory",
        "devices",
        "packages",
        "hub cache",
        "embedded model",
    ]
    made = json.loads(command("doctor", "--json").stdout)
    assert made["ok"] is True
    assert made["problems"] == []
    assert list(made["checks"]) == names
    assert made["checks"]["torch"]["version"] == torch.__version__
    assert made["checks"]["embedded model"]["ok"] is True
    assert made["checks"]["memory"]["total"] > 10**8


def test_a_wrong_instruction_set_is_a_problem():
    if not KERNELS.exists():
        pytest.skip("the kernels are not built here")
    code, made = doctor(PIXTRAL_ISA="avx1024")
    assert code == 1
    assert "PIXTRAL_ISA is 'avx1024'" in made["problems"][0]
    code, made = doctor(PIXTRAL_ISA="portable")
    assert code == 0
    assert made["checks"]["kernels"]["isa"] == "portable"
    assert any("PIXTRAL_ISA" in warning for warning in made["warnings"])


def test_missing_kernels_are_a_warning(monkeypatch):
    from pixtral.ops.native import library

    monkeypatch.setattr("pixtral.ops.native.library.importlib.util.find_spec", lambda name: None)
    caches = (library._open, library.kernels)
    for cache in caches:
        cache.cache_clear()
    result = command("doctor", "--json")
    for cache in caches:
        cache.cache_clear()
    made = json.loads(result.stdout)
    assert result.exit_code == 0
    assert made["checks"]["kernels"]["built"] is False
    assert "install a C++17 compiler" in made["warnings"][0]


def test_a_broken_embedded_model_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("pixtral.assets.tiny_path", lambda: tmp_path)
    result = command("doctor")
    assert result.exit_code == 1
    assert "x embedded model" in result.stdout
    assert "reinstall pixtral" in result.stdout


def test_a_torch_that_cannot_be_imported_does_not_hide_the_rest(monkeypatch):
    from pixtral.cli import doctor_checks

    monkeypatch.setitem(sys.modules, "torch", None)
    found = {check.name: check for check in (doctor_checks._torch(), doctor_checks._memory(), doctor_checks._devices())}
    assert found["torch"].problem
    assert "pip install torch" in found["torch"].advice
    assert found["memory"].found == "unknown without torch"
    assert not found["devices"].problem


def test_too_many_threads_and_little_memory_are_warned_of(monkeypatch, tmp_path):
    from pixtral.cli import doctor_checks

    quota = tmp_path / "cpu.max"
    quota.write_text("150000 100000\n")
    monkeypatch.setattr(doctor_checks, "_QUOTA", quota)
    monkeypatch.setattr("pixtral.cli.doctor_checks.machine.cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "say --threads 2" in doctor_checks._torch().advice
    assert doctor_checks._processor().facts["quota"] == 2
    quota.write_text("max 100000\n")
    assert doctor_checks._torch().advice == ""
    monkeypatch.setattr("pixtral.checkpoints.memory.available_memory", lambda device: 4 << 30)
    assert "close other programs" in doctor_checks._memory().advice
