"""From text to ids and back with mistral-common, and the special tokens that frame a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pixtral.errors import PromptError
from pixtral.text.mistral_vocab import MistralVocabulary

_LANGUAGE = re.compile(r"^lang:[a-z]{2}")


class MistralEncoding(MistralVocabulary):
    """Mixed into MistralCommonTokenizer."""

    def text_to_ids(self, text: str) -> list[int]:
        """The ids of a text; no control token is ever read from it."""
        return list(self.backend.encode(text, bos=False, eos=False))

    def ordinary_ids(self, text: str, *, first: bool = True) -> list[int]:
        """As `text_to_ids`: nothing in a text is a control token here."""
        return self.text_to_ids(text)

    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of these ids, as mistral-common decodes them; skipping also drops a leading language mark."""
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        policy: Any = SpecialTokenPolicy.IGNORE if skip_special_tokens else SpecialTokenPolicy.KEEP
        text = self.tokenizer.decode(list(ids), special_token_policy=policy)
        return _LANGUAGE.sub("", text) if skip_special_tokens else text

    def readable(self, ids: Sequence[int]) -> str:
        """The ids as text with the control tokens by name; unlike `decode`, no SentencePiece marks show."""
        text, run = "", list[int]()
        for token_id in [*ids, None]:
            if token_id is not None and not self.backend.is_special(token_id):
                run.append(token_id)
                continue
            text += self.ids_to_text(run, skip_special_tokens=True) if run else ""
            text, run = text + ("" if token_id is None else self.backend.id_to_piece(token_id)), []
        return text

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: None = None) -> list[int]:
        """The beginning of sequence before the ids, and in "finetuning" mode the end behind them."""
        if token_ids_1 is not None:
            raise PromptError("pairs of sequences are not supported; leave token_ids_1 out")
        end = [self.backend.eos_id] if self.mode.value == "finetuning" else []
        return [self.backend.bos_id, *token_ids_0, *end]

    def create_token_type_ids_from_sequences(self, token_ids_0: list[int], token_ids_1: None = None) -> list[int]:
        """Zeros, one for every id of the row with its special tokens."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where a special token is, or would be added, and 0 elsewhere."""
        if token_ids_1 is not None:
            raise PromptError("pairs of sequences are not supported; leave token_ids_1 out")
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(int(token) in special) for token in token_ids_0]
        return [1] + [0] * len(token_ids_0) + ([1] if self.mode.value == "finetuning" else [])
