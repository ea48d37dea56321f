"""What both tokenizers share: rows of ids are truncated, given their special tokens, padded and decoded alike."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pixtral.batch import BatchEncoding
from pixtral.errors import PromptError
from pixtral.text.decoding import Decoding
from pixtral.text.refusals import refuse
from pixtral.text.rows import Rows, columns, tensor_type


class TokenizerBase(Rows, Decoding):
    """Everything that follows from "text to ids" and "ids to text"."""

    name_or_path: str = ""  # where from_pretrained read it

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
        data = columns([row.data for row in rows])
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
        """A row of ids made ready: truncated, given its special tokens, padded. Pairs are refused."""
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
        row = self._pad_rows([row], lengths.padding, lengths.max_length, pad_to_multiple_of, padding_side,
                             return_attention_mask)[0]  # fmt: skip
        if return_length:
            row["length"] = len(row["input_ids"])
        if return_tensors and prepend_batch_axis:
            row = {key: [value] for key, value in row.items()}
        return BatchEncoding(row, tensor_type=tensor_type(return_tensors))


def _is_batch(text: object) -> bool:
    return isinstance(text, (list, tuple)) and (not text or isinstance(text[0], (str, list, tuple)))
