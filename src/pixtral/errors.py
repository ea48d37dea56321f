"""One tree for every error that a caller of this package can cause.

    PixtralError
    ├── ConfigError         (ValueError)   a configuration file or field
    ├── ImageError          (ValueError)   an image that cannot be read or used
    │   ├── ImageTooLarge                  ... because of its pixels or bytes
    │   └── ImageFetchError (OSError)      ... because it could not be fetched
    ├── PromptError         (ValueError)   messages, templates, placeholders, context length
    ├── CheckpointError     (OSError)      missing, broken or unexpected files and tensors
    ├── QuantizationError   (ValueError)   weights that cannot be stored in fewer bits
    ├── GenerationError     (ValueError)   arguments of generate()
    ├── StructureError      (ValueError)   a schema, pattern, grammar or tool that cannot be honoured
    ├── EngineError         (RuntimeError) an engine that has stopped, or takes no more requests
    ├── UnknownArgument     (TypeError)    a keyword that is not known
    │   └── Refused         (ValueError)   ... that Transformers or Mistral would take
    └── MissingDependency   (ImportError)  an optional package; the message names the extra

Each also inherits the builtin that a program written for Transformers catches.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence


class PixtralError(Exception):
    """Base class: catch this to catch everything the package raises on purpose."""


class ConfigError(PixtralError, ValueError):
    """A configuration file or one of its fields is wrong."""


class ImageError(PixtralError, ValueError):
    """An image cannot be read, decoded or used."""


class ImageTooLarge(ImageError):
    """An image exceeds a limit on pixels or bytes."""


class ImageFetchError(ImageError, OSError):
    """An image could not be fetched from where its address points."""


class PromptError(PixtralError, ValueError):
    """A conversation, template or prompt cannot be turned into model input."""


class CheckpointError(PixtralError, OSError):
    """A checkpoint is missing, broken, or does not fit the model."""


class QuantizationError(PixtralError, ValueError):
    """Weights cannot be stored in fewer bits, or stored ones do not fit together."""


class GenerationError(PixtralError, ValueError):
    """An argument of generate() is wrong."""


class StructureError(PixtralError, ValueError):
    """A schema, pattern, grammar or tool cannot be honoured.

    Attributes:
        param: which field of the request it came from.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EngineError(PixtralError, RuntimeError):
    """The engine has stopped, or takes no more requests."""


class UnknownArgument(PixtralError, TypeError):
    """A keyword argument that would have been ignored."""


class Refused(UnknownArgument, PromptError):
    """An argument that Transformers or Mistral would take; TypeError as in Python, ValueError as in Transformers."""


class MissingDependency(PixtralError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for a misspelt name: the closest known one, or the whole list when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def listed(items: Sequence[str], count: int = 5, separator: str = ", ") -> str:
    """The first few, and how many more.

    >>> listed("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more


def refuse_unknown(names: Iterable[str], where: str, known: Collection[str]) -> None:
    """Raise UnknownArgument for the first name that `where` does not take.

    Args:
        names: the keyword arguments that were left over.
        where: what refused them, as the caller wrote it ("generate()").
        known: the names that would have been accepted.
    """
    for name in names:
        raise UnknownArgument(f"{where} got an unknown argument {name!r}; {nearest(name, known)}")


def refuse(kwargs: Mapping[str, object], where: str) -> None:
    """Raise Refused if anything is left in `kwargs`."""
    if kwargs:
        raise Refused(f"{where} does not take {', '.join(map(repr, kwargs))}; leave it out")
