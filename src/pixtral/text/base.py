"""The base class of both tokenizers: rows of ids are truncated, given their special tokens, padded and decoded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pixtral.batch_feature import BatchEncoding
from pixtral.errors import PromptError, refuse
from pixtral.text.padding import VERY_LARGE, Lengths, pad_row, resolve, to_list, truncate_ids
from pixtral.text.special_tokens import SpecialTokens


class TokenizerBase(SpecialTokens):
    """Encoding, truncation, padding and decoding with Transformers' arguments, from two abstract conversions."""

    name_or_path: str = ""  # where from_pretrained read it
    model_input_names: list[str]
    padding_side: str = "left"
    truncation_side: str = "right"
    model_max_length: int = VERY_LARGE
    clean_up_tokenization_spaces: bool = False

    @abstractmethod
    def text_to_ids(self, text: str) -> list[int]:
        """The ids of a text as it stands, nothing added."""

    @abstractmethod
    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: None = None) -> list[int]:
        """The ids with the special tokens that `add_special_tokens` asks for."""

    @abstractmethod
    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for a special token, 0 for another."""

    @abstractmethod
    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of these ids."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many ids `add_special_tokens` adds to a row; pairs are refused."""
        if pair:
            raise PromptError("pairs of sequences are not supported; leave pair out")
        return len(self.build_inputs_with_special_tokens([]))

    def _encode_rows(
        self,
        text: object,
        *,
        padding: object,
        truncation: object,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
        return_tensors: object,
        return_attention_mask: bool | None,
        **options: Any,
    ) -> BatchEncoding:
        """One text, a row of ids, or a list of either, as a BatchEncoding."""
        if not _is_batch(text):
            return self.prepare_for_model(
                self._row(text),
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=return_tensors,
                return_attention_mask=return_attention_mask,
                prepend_batch_axis=True,
                **options,
            )
        assert isinstance(text, (list, tuple))
        lengths = self.lengths(padding, truncation, max_length, pad_to_multiple_of)
        rows = [
            self.prepare_for_model(
                self._row(item),
                truncation=lengths.truncate,
                max_length=lengths.max_length,
                return_attention_mask=False,
                **{**options, "return_overflowing_tokens": options["return_overflowing_tokens"] and not return_tensors},
            )
            for item in text
        ]
        data = _columns([row.data for row in rows])
        return self.pad(
            data,
            padding=lengths.padding,
            max_length=lengths.max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def _row(self, text: object) -> list[int]:
        if isinstance(text, str):
            return self.text_to_ids(text)
        if isinstance(text, (list, tuple)) and text and isinstance(text[0], int):
            return list(text)
        raise PromptError(f"text is {text!r}; expected a string, a list of ids, or a list of those")

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: None = None,
        add_special_tokens: bool = True,
        padding: object = False,
        truncation: object = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: object = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        prepend_batch_axis: bool = False,
        **kwargs: object,
    ) -> BatchEncoding:
        """Truncate a row of ids, add its special tokens and pad it. Pairs are refused."""
        refuse({key: value for key, value in kwargs.items() if value}, "prepare_for_model()")
        if pair_ids is not None:
            raise PromptError("pairs of sequences are not supported; leave pair_ids out")
        lengths = self.lengths(padding, truncation, max_length, pad_to_multiple_of)
        total = len(ids) + (self.num_special_tokens_to_add() if add_special_tokens else 0)
        overflow: list[int] = []
        if lengths.truncate and lengths.max_length and total > lengths.max_length:
            ids, _, overflow = self.truncate_sequences(
                ids, num_tokens_to_remove=total - lengths.max_length, stride=stride
            )
        row: dict[str, Any] = {
            "input_ids": self.build_inputs_with_special_tokens(ids) if add_special_tokens else list(ids)
        }
        size = len(row["input_ids"])
        if return_token_type_ids or (return_token_type_ids is None and "token_type_ids" in self.model_input_names):
            row["token_type_ids"] = [0] * size
        if return_special_tokens_mask:
            row["special_tokens_mask"] = self.get_special_tokens_mask(ids) if add_special_tokens else [0] * size
        if return_overflowing_tokens and not return_tensors and overflow:
            row["overflowing_tokens"] = overflow
            row["num_truncated_tokens"] = total - (lengths.max_length or 0)
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        row = self._pad_rows(
            [row], lengths.padding, lengths.max_length, pad_to_multiple_of, padding_side, return_attention_mask
        )[0]
        if return_length:
            row["length"] = len(row["input_ids"])
        if return_tensors and prepend_batch_axis:
            row = {key: [value] for key, value in row.items()}
        return BatchEncoding(row, tensor_type=_tensor_type(return_tensors))

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
        data = dict(encoded_inputs) if isinstance(encoded_inputs, Mapping) else _columns(encoded_inputs)
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
        rows = self._pad_rows(
            rows, lengths.padding, lengths.max_length, pad_to_multiple_of, padding_side, return_attention_mask
        )
        return BatchEncoding(rows[0] if single else _columns(rows), tensor_type=_tensor_type(return_tensors))

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

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: object,
    ) -> Any:
        """The text of one id or a row of ids; of several rows, a list of texts.

        Args:
            token_ids: numbers in lists, arrays or tensors.
            skip_special_tokens: leave the control tokens out.
            clean_up_tokenization_spaces: join " ." and the like; None follows the tokenizer's own setting.
        """
        refuse(kwargs, "decode()")
        ids = to_list(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        text = self.ids_to_text([ids] if isinstance(ids, int) else ids, skip_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return _clean_up_tokenization(text) if clean else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: object,
    ) -> list[str]:
        """The texts of several rows of ids; arguments as in `decode`."""
        refuse(kwargs, "batch_decode()")
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return texts if isinstance(texts, list) else [texts]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A list of rows as a mapping of lists; an entry that a row lacks is [0], as Transformers fills it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name, [0]) for row in rows] for name in names}


def _array_kind(value: Any) -> str | None:
    """ "pt" or "np" for tensors and arrays, or lists of them; None for plain lists."""
    first = value[0] if isinstance(value, (list, tuple)) else value
    if hasattr(first, "detach"):
        return "pt"
    return "np" if type(first).__module__ == "numpy" else None


def _tensor_type(kind: object) -> str | None:
    """ "pt", "np" or None out of `return_tensors`, a string or Transformers' enumeration."""
    name = getattr(kind, "value", kind)
    if name not in (None, "pt", "np"):
        raise PromptError(f"return_tensors is {kind!r}; expected 'pt', 'np' or None")
    return None if name is None else str(name)


def _clean_up_tokenization(text: str) -> str:
    """The text without the blanks that some tokenizers leave before punctuation and English contractions."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def _is_batch(text: object) -> bool:
    return isinstance(text, (list, tuple)) and (not text or isinstance(text[0], (str, list, tuple)))
