"""Skips are told at the end of a run, and unknown ones fail it: in runs of pytest on files that are written here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = {
    "known": "import pytest\n@pytest.mark.parametrize('_', range(3))\ndef test(_): pytest.skip('no avx512 here')",
    "unknown": "import pytest\n@pytest.mark.skip(reason='made up')\ndef test(): pass",
    "file": "import pytest\npytest.importorskip('nowhere_to_be_found')",
    "expected": "import pytest\n@pytest.mark.xfail\ndef test(): assert False\ndef test_more(): pass",
}


def run(folder: Path, *names: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and output."""
    for name in names:
        (folder / f"test_{name}.py").write_text(FILES[name])
    plugins = ["-p", "skips", "-p", "no:cacheprovider", *(("-p", "xdist") if "-n" in options else ())]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *options, str(folder)]
    # others that happen to be installed take seconds to import
    path = {"PYTHONPATH": ":".join([str(TESTS), *filter(None, sys.path)]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_reasons_are_counted(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, said = run(tmp_path, "known", "unknown", "file", "expected", options=options)
    assert code == 0
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "3 x no avx512 here" in lines
    assert "1 x made up (unknown to tests/skips.py)" in lines
    assert any(line.startswith("1 x could not import 'nowhere_to_be_found'") for line in lines)
    assert sum(" x " in line for line in lines) == 3


@pytest.mark.parametrize("options", [(), ("-n", "2")])
@pytest.mark.parametrize(("name", "expected"), [("known", 0), ("unknown", 1), ("file", 1), ("expected", 0)])
def test_unknown_reasons_fail_a_strict_run(tmp_path: Path, name: str, expected: int, options: tuple[str, ...]) -> None:
    code, said = run(tmp_path, name, options=("--strict-skips", *options))
    assert code == expected, said
    assert ("skips for unknown reasons" in said) == bool(expected)
