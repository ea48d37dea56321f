"""Padding and truncation of rows of ids by Transformers' rules for `padding`, `truncation` and `max_length`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixtral.errors import PromptError

NO_LIMIT = 10**20  # a model_max_length beyond this means that there is none
VERY_LARGE = int(1e30)
_PADDING = ("longest", "max_length", "do_not_pad")
_TRUNCATION = ("longest_first", "do_not_truncate", "only_first", "only_second")


@dataclass(frozen=True)
class Lengths:
    """The resolved arguments of one call: padding strategy, whether to truncate, and the length (None: no limit)."""

    padding: str
    truncate: bool
    max_length: int | None


def _strategy(value: object, allowed: tuple[str, ...], name: str) -> str:
    """The name of a strategy, given by name or as an enumeration member."""
    text = getattr(value, "value", value)
    if text not in allowed:
        raise PromptError(f"{name} is {value!r}; expected True, False or one of {', '.join(map(repr, allowed))}")
    return str(text)


def resolve(
    padding: object,
    truncation: object,
    max_length: int | None,
    *,
    model_max_length: int,
    pad_token_id: int | None,
    pad_to_multiple_of: int | None = None,
) -> Lengths:
    """Resolve the arguments of one call.

    Raises:
        PromptError: an unknown strategy, padding without a padding token, or a length that contradicts
            `pad_to_multiple_of`.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = True  # a length alone asks for truncation
    truncate = truncation not in (None, False) and (
        truncation is True or _strategy(truncation, _TRUNCATION, "truncation") != "do_not_truncate"
    )
    if padding is True:
        pad = "longest"
        if max_length is not None and not truncate:
            warnings.warn("max_length is ignored with padding=True; write padding='max_length'", stacklevel=4)
    else:
        pad = "do_not_pad" if padding in (None, False) else _strategy(padding, _PADDING, "padding")
    if max_length is None:
        if model_max_length > NO_LIMIT:
            pad = "do_not_pad" if pad == "max_length" else pad
            truncate = False
        elif pad == "max_length" or truncate:
            max_length = model_max_length
    if pad != "do_not_pad" and (pad_token_id is None or pad_token_id < 0):
        raise PromptError("cannot pad: the tokenizer has no padding token; set tokenizer.pad_token first")
    if truncate and pad != "do_not_pad" and pad_to_multiple_of and max_length and max_length % pad_to_multiple_of:
        raise PromptError(
            f"max_length={max_length} is no multiple of pad_to_multiple_of={pad_to_multiple_of}; "
            "truncated rows could not be padded to it"
        )
    return Lengths(pad, truncate, max_length)


def pad_row(
    row: Mapping[str, Any],
    *,
    length: int | None,
    pad_token_id: int,
    side: str,
    multiple_of: int | None = None,
    attention_mask: bool = True,
) -> dict[str, Any]:
    """One row's entries (input_ids and what goes with them) filled up to `length`; None leaves the length.

    Added places hold the padding token, 0 in the attention mask and the type ids, 1 in the special tokens mask.
    """
    if side not in ("left", "right"):
        raise PromptError(f"padding_side is {side!r}; expected 'left' or 'right'")
    ids = list(row["input_ids"])
    result = {**row, "input_ids": ids}
    if attention_mask and "attention_mask" not in result:
        result["attention_mask"] = [1] * len(ids)
    if length is not None and multiple_of and length % multiple_of:
        length = (length // multiple_of + 1) * multiple_of
    missing = 0 if length is None else length - len(ids)
    if missing <= 0:
        return result
    fillers = {"input_ids": pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    for key, filler in fillers.items():
        if key in result and (key != "attention_mask" or attention_mask):
            values = list(result[key])
            result[key] = [filler] * missing + values if side == "left" else values + [filler] * missing
    return result


def truncate_ids(
    ids: Sequence[int], remove: int, *, side: str = "right", stride: int = 0
) -> tuple[list[int], list[int]]:
    """(ids without `remove` of them at the side, the removed ones with `stride` of their neighbours)."""
    if remove <= 0:
        return list(ids), []
    window = min(len(ids), stride + remove)
    if side == "left":
        return list(ids[remove:]), list(ids[:window])
    return list(ids[:-remove]), list(ids[-window:])


def to_list(value: Any) -> Any:
    """Tensors and arrays, also inside lists, as nested lists of plain numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_list(item) for item in value] if value and not isinstance(value[0], int) else list(value)
    return value
