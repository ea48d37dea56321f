"""Checks of single fields; every message names the field, what was found and what is expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from pixtral.errors import ConfigError

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu")
DTYPES = ("float64", "float32", "float16", "bfloat16")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# By the annotation of a field: what fits it, and its name in a message.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "None": (lambda value: value is None, "null"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_int, "an integer"),
    "float": (lambda value: _is_int(value) or isinstance(value, float), "a number"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "list[int]": (lambda value: isinstance(value, list) and all(map(_is_int, value)), "a list of integers"),
    "list[str]": (
        lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value),
        "a list of strings",
    ),
    "dict[str, Any]": (lambda value: isinstance(value, dict), "an object"),
}


def require_types(config: Any) -> None:
    """Raise ConfigError unless every field holds what its annotation says (sub-configurations are checked apart)."""
    for field in dataclasses.fields(config):
        kinds = [_KINDS[kind] for kind in str(field.type).split(" | ") if kind in _KINDS]
        value = getattr(config, field.name)
        if kinds and not any(fits(value) for fits, _ in kinds):
            expected = " or ".join(name for _, name in kinds)
            raise ConfigError(f"{type(config).__name__}.{field.name} is {value!r}, expected {expected}")


def require_positive(where: str, **values: object) -> None:
    """Raise ConfigError unless every named value is a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{where}.{name} is {value!r}, expected a positive integer")


def require_between(where: str, low: float, high: float, **values: float) -> None:
    """Raise ConfigError unless low <= value < high for every named number."""
    for name, value in values.items():
        if not low <= value < high:
            raise ConfigError(f"{where}.{name} is {value!r}, expected a number from {low:g} to below {high:g}")


def require_activation(where: str, name: object) -> None:
    """Raise ConfigError unless the activation is one that the layers implement."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"{where} is {name!r}, expected one of {', '.join(ACTIVATIONS)}")


def dtype_name(where: str, value: object) -> str | None:
    """The name of a data type from a name or a torch.dtype."""
    name = None if value is None else str(value).removeprefix("torch.")
    if name not in (None, *DTYPES):
        raise ConfigError(f"{where}.dtype is {value!r}, expected one of {', '.join(DTYPES)}, or null")
    return name


def one_side(where: str, name: str, value: Any) -> int:
    """A side in pixels from an int, or from a pair of equal ints as some files write it."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if not sides or any(side != sides[0] for side in sides):
        raise ConfigError(f"{where}.{name} is {value!r}; Pixtral's patches are square, expected one integer")
    require_positive(where, **{name: sides[0]})
    return int(sides[0])


def rope_base(where: str, theta: float | None, parameters: dict[str, Any] | None, kind: str) -> float:
    """The rotary base from the flat field, the nested one, or Transformers' default, 10000."""
    if parameters is not None and not isinstance(parameters, dict):
        raise ConfigError(f"{where}.rope_parameters is {parameters!r}, expected an object or null")
    given = dict(parameters or {})
    rope_type = given.pop("rope_type", given.pop("type", kind))
    nested = given.pop("rope_theta", None)
    leftover = {key: value for key, value in given.items() if value is not None}
    if rope_type not in (kind, "default", None) or leftover:
        raise ConfigError(
            f"{where}.rope_parameters asks for rotary type {rope_type!r} with {leftover or 'no options'}; "
            "only the unscaled rotary embedding of Pixtral is implemented"
        )
    if theta is not None and nested is not None and theta != nested:
        raise ConfigError(f"{where} has rope_theta {theta} and rope_parameters with {nested}; give one of them")
    value = theta if theta is not None else nested if nested is not None else 10000.0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ConfigError(f"{where}.rope_theta is {value!r}, expected a positive number")
    return float(value)
