"""Functions that cannot become a schema are refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from tokens import WEATHER

from pixtral.errors import PromptError
from pixtral.text.tools import function_schema, tool_schemas


def no_docstring(a: int) -> None: ...


def no_annotation(a) -> None:  # type: ignore[no-untyped-def]
    """Do.

    Args:
        a: It.
    """


def not_described(a: int) -> None:
    """Do."""


def strange(a: complex) -> None:
    """Do.

    Args:
        a: It.
    """


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_docstring, "has no docstring"),
        (no_annotation, "'a' has no annotation"),
        (not_described, "does not describe argument 'a'"),
        (strange, "no JSON counterpart"),
    ],
)
def test_refused_functions(function: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        function_schema(function)


def test_lists_of_tools() -> None:
    assert tool_schemas(None) is None and tool_schemas([]) == [] and tool_schemas([WEATHER]) == [WEATHER]
    for wrong in (WEATHER, "x", [5], [int]):
        with pytest.raises(PromptError, match="expected a"):
            tool_schemas(wrong)  # type: ignore[arg-type]
