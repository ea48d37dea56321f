"""Why tests were skipped, told at the end of a run; with --strict-skips a skip for an unknown reason fails the run.

A test that is skipped proves nothing, and nobody sees it among thousands of dots: a wrong condition, a package that is
no longer installed, or a renamed module of Transformers would otherwise switch tests off for good.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

KNOWN = (
    # Kernels for every instruction set are in every build, but a machine runs only those of its CPU. Each set that a
    # machine has is tested there, and the sets in continuous integration are those of its runners.
    r"no (avx2|avx512|avx512_bf16) here",
    # The same for single tests about kernels of PyTorch, or of this library, that exist for AVX-512 only.
    r"PyTorch has another kernel there",
    r"nothing is taken twice there",
    r"no kernel for this CPU",
    r"the kernels have no products of bfloat16 for this CPU",
    r"PyTorch's own sums( in bfloat16)? depend on the number of rows",
    # Without a compiler the package works in plain PyTorch, and has to be testable there.
    r"the kernels are not built( here)?",
    # A browser is no package of Python; the page is tested where there is one.
    r"no Chromium on this machine; .*",
    # What Linux says of a process and what it limits, macOS and Windows do not.
    r"peak memory is read from Linux's /proc",
    r"the system does not say what is resident",
    r"limits on memory are the system's",
    r"forks",
    # Nothing is unreadable for root, as whom containers run.
    r"root reads everything",
    # Wheels of Pillow differ in what they were built with.
    r"this Pillow has no AVIF",
    # A pair of parameters that cannot be.
    r"Mistral's layout has no tied embeddings",
    # Interfaces of PyTorch that came after the oldest version that is supported.
    r"PyTorch has no devices in Python yet",
)
_KNOWN = re.compile("|".join(KNOWN))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--strict-skips`."""
    parser.addoption("--strict-skips", action="store_true", help="fail when a test is skipped for an unknown reason")


class Skips:
    """Counts reasons; in the process that tells the results, to which those of pytest-xdist send theirs."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.reasons: Counter[str] = Counter()

    @property
    def unknown(self) -> list[str]:
        """Reasons that nobody has written down."""
        return sorted(reason for reason in self.reasons if not _KNOWN.fullmatch(reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has ended; expected failures come as skips, too, and are none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._count(report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file was skipped as a whole."""
        if report.skipped:
            self._count(report.longrepr)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run, unless it has failed already."""
        good = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.strict and self.unknown and session.exitstatus in good:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The reasons, most frequent first."""
        if not self.reasons:
            return
        terminalreporter.section("skipped")
        for reason, count in self.reasons.most_common():
            note = "" if _KNOWN.fullmatch(reason) else "  (unknown to tests/skips.py)"
            terminalreporter.line(f"{count:6} x {reason}{note}", red=bool(note) and self.strict)
        if self.strict and self.unknown:
            terminalreporter.line("skips for unknown reasons: run these tests, or say why that is fine", red=True)

    def _count(self, longrepr: object) -> None:
        """From (file, line, "Skipped: reason"), as pytest puts it."""
        text = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
        self.reasons[text.removeprefix("Skipped: ")] += 1


def pytest_configure(config: pytest.Config) -> None:
    """Not in the processes that pytest-xdist starts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Skips(config.getoption("strict_skips")), "pixtral-skips")
