"""Refusing arguments in a way that callers of Python and of Transformers both expect."""

from __future__ import annotations

from collections.abc import Mapping

from pixtral.errors import PromptError, UnknownArgument


class Refused(UnknownArgument, PromptError):
    """An argument that is not taken: a TypeError as in Python, and a ValueError as in Transformers."""


def refuse(kwargs: Mapping[str, object], where: str) -> None:
    """Raise Refused if anything is left in `kwargs`."""
    if kwargs:
        raise Refused(f"{where} does not take {', '.join(map(repr, kwargs))}; leave it out")
