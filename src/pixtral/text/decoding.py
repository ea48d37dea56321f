"""From ids to text: what both tokenizers do alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from pixtral.text.padding import to_list
from pixtral.text.refusals import refuse


class Decoding:
    """Mixed into the tokenizers, which provide `ids_to_text`."""

    clean_up_tokenization_spaces: bool = False

    @abstractmethod
    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of these ids."""

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
        return clean_up_tokenization(text) if clean else text

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


def clean_up_tokenization(text: str) -> str:
    """The text without the blanks that some tokenizers leave before punctuation and English contractions."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
