"""The tree of errors, and the hints that go with a misspelt name."""

from __future__ import annotations

import inspect

import pytest

from pixtral import errors
from pixtral.errors import PixtralError, UnknownArgument, nearest, refuse_unknown

BUILTINS = {
    "ConfigError": ValueError,
    "ImageError": ValueError,
    "ImageTooLarge": ValueError,
    "ImageFetchError": OSError,
    "PromptError": ValueError,
    "CheckpointError": OSError,
    "QuantizationError": ValueError,
    "GenerationError": ValueError,
    "StructureError": ValueError,
    "EngineError": RuntimeError,
    "UnknownArgument": TypeError,
    "Refused": TypeError,
    "MissingDependency": ImportError,
}


def test_every_error_is_in_the_tree_and_is_a_builtin_too() -> None:
    found = {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception) and kind is not PixtralError and kind.__module__ == errors.__name__
    }
    assert found.keys() == BUILTINS.keys()
    for name, builtin in BUILTINS.items():
        assert issubclass(found[name], PixtralError) and issubclass(found[name], builtin)
        assert str(found[name]("why")) == "why"
        assert name in (errors.__doc__ or "")


def test_kinds_of_image_errors() -> None:
    assert issubclass(errors.ImageTooLarge, errors.ImageError)
    assert issubclass(errors.ImageFetchError, errors.ImageError)


def test_nearest_names_one_or_all() -> None:
    assert nearest("temprature", ["temperature", "top_k"]) == "did you mean 'temperature'?"
    assert nearest("xyz", {"b", "a"}) == "known: a, b"


def test_refuse_unknown() -> None:
    refuse_unknown([], "f()", ["a"])
    with pytest.raises(UnknownArgument, match=r"f\(\) got an unknown argument 'tmp'; known: temperature"):
        refuse_unknown({"tmp": 1}, "f()", ["temperature"])
    with pytest.raises(TypeError, match=r"did you mean 'top_k'"):
        refuse_unknown(["topk"], "f()", ["top_k", "top_p"])
