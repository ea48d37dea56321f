"""Rows of ids: their lengths, truncation and padding, the same for both tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pixtral.batch import BatchEncoding
from pixtral.errors import PromptError
from pixtral.text.padding import VERY_LARGE, Lengths, pad_row, resolve, to_list, truncate_ids
from pixtral.text.special import SpecialTokens


class Rows(SpecialTokens):
    """Mixed into the tokenizers."""

    model_input_names: list[str]
    padding_side: str = "left"
    truncation_side: str = "right"
    model_max_length: int = VERY_LARGE

    def lengths(self, padding: object, truncation: object, max_length: int | None, multiple: int | None) -> Lengths:
        """What these options mean together for this tokenizer."""
        return resolve(
            padding,
            truncation,
            max_length,
            model_max_length=self.model_max_length,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=multiple,
        )

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: object = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], None, list[int]]:
        """(shortened ids, None, removed ids with `stride` neighbours); only "longest_first" shortens anything."""
        if pair_ids:
            raise PromptError("pairs of sequences are not supported; leave pair_ids out")
        name = getattr(truncation_strategy, "value", truncation_strategy)
        if name not in ("longest_first", "do_not_truncate"):
            raise PromptError(f"truncation_strategy is {name!r}; expected 'longest_first' or 'do_not_truncate'")
        if name == "do_not_truncate" and num_tokens_to_remove > 0:
            return ids, None, []
        kept, removed = truncate_ids(ids, num_tokens_to_remove, side=self.truncation_side, stride=stride)
        return kept, None, removed

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: object = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: object = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Rows of ids, and what goes with them, filled up to one length.

        Args:
            encoded_inputs: one row or several, as a mapping of lists, or as a list of mappings.
            padding, max_length: "longest" (True) or "max_length"; False fills nothing.
            return_tensors: "pt", "np" or None for lists; None keeps tensors as tensors.
        """
        single = isinstance(encoded_inputs, Mapping)
        data = dict(encoded_inputs) if isinstance(encoded_inputs, Mapping) else columns(encoded_inputs)
        if "input_ids" not in data:
            raise PromptError(f"pad() needs 'input_ids', got only {', '.join(map(repr, data)) or 'nothing'}")
        if len(data["input_ids"]) == 0:
            return BatchEncoding({**data, "attention_mask": []} if return_attention_mask else data)
        if return_tensors is None and (kind := _array_kind(data["input_ids"])):
            return_tensors = kind
        data = {key: to_list(value) for key, value in data.items()}
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        lengths = self.lengths(padding, None if padding is not False else False, max_length, None)
        single = single and not isinstance(data["input_ids"][0], list)
        rows = (
            [data]
            if single
            else [{key: value[i] for key, value in data.items()} for i in range(len(data["input_ids"]))]
        )
        rows = self._pad_rows(rows, lengths.padding, lengths.max_length, pad_to_multiple_of, padding_side,
                              return_attention_mask)  # fmt: skip
        return BatchEncoding(rows[0] if single else columns(rows), tensor_type=tensor_type(return_tensors))

    def _pad_rows(
        self,
        rows: list[dict[str, Any]],
        padding: str,
        max_length: int | None,
        multiple: int | None,
        side: str | None,
        attention_mask: bool,
    ) -> list[dict[str, Any]]:
        length = None
        if padding == "longest":
            length = max(len(row["input_ids"]) for row in rows)
        elif padding == "max_length":
            length = max_length
        pad_id = 0 if length is None or self.pad_token_id is None else self.pad_token_id
        return [
            pad_row(
                row,
                length=length,
                pad_token_id=pad_id,
                side=side or self.padding_side,
                multiple_of=multiple,
                attention_mask=attention_mask,
            )
            for row in rows
        ]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A list of rows as a mapping of lists; a row that did not overflow counts as [0] among those that did."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name, [0]) for row in rows] for name in names}


def _array_kind(value: Any) -> str | None:
    """ "pt" or "np" for tensors and arrays, or lists of them; None for plain lists."""
    first = value[0] if isinstance(value, (list, tuple)) else value
    if hasattr(first, "detach"):
        return "pt"
    return "np" if type(first).__module__ == "numpy" else None


def tensor_type(kind: object) -> str | None:
    """ "pt", "np" or None out of `return_tensors`, a string or Transformers' enumeration."""
    name = getattr(kind, "value", kind)
    if name not in (None, "pt", "np"):
        raise PromptError(f"return_tensors is {kind!r}; expected 'pt', 'np' or None")
    return None if name is None else str(name)
