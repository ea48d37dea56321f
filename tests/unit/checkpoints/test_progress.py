"""The progress bar shows on a terminal, when wanted, and nowhere else."""

from __future__ import annotations

import sys

import pytest

from pixtral.checkpoints.fill import byte_bar


def test_the_bar_is_shown_on_terminals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, wanted in [(True, True), (False, True), (True, False)]:
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with byte_bar(wanted, 100, "Loading weights (hf layout)") as advance:
            advance(60)
            advance(40)
        assert ("Loading weights (hf layout)" in capsys.readouterr().err) == (terminal and wanted)
