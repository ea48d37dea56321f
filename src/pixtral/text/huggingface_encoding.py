"""From text to ids with a tokenizer.json: texts as they are, and prompts whose control tokens are known."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pixtral.text.huggingface_vocab import HuggingFaceVocabulary
from pixtral.text.templates import Rendered


class HuggingFaceEncoding(HuggingFaceVocabulary):
    """Mixed into HuggingFaceTokenizer."""

    def text_to_ids(self, text: str) -> list[int]:
        """The ids of a text, control tokens in it included, nothing added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def ordinary_ids(self, text: str, *, first: bool = True) -> list[int]:
        """The ids of a text in which nothing is a control token; `first`: it stands at the prompt's beginning."""
        normalizer, splitter = self.backend.normalizer, self.backend.pre_tokenizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        if splitter is not None and not first:
            splitter = self._later_splitter or splitter
        words = [text] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
        return [token.id for word in words for token in self.backend.model.tokenize(word)]

    @cached_property
    def _later_splitter(self) -> Any:
        """The pre-tokenizer for text inside a prompt, where it differs: some put a blank before the first word only."""
        state = self.backend.pre_tokenizer.__getstate__()
        if b'"prepend_scheme":"first"' not in state:
            return None
        changed = pickle.loads(pickle.dumps(self.backend.pre_tokenizer))
        changed.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
        return changed

    def rendered_ids(self, rendered: Rendered) -> list[int]:
        """The ids of a rendered chat template: its own control tokens as such, the conversation's as text."""
        if not rendered.mask.stand_ins:
            return self.text_to_ids(rendered.text)
        return self.pieces_to_ids(rendered.split())

    def pieces_to_ids(self, pieces: Sequence[tuple[bool, str]]) -> list[int]:
        """The ids of (is a control token, piece) in order. `text_to_ids` of the joined text if no piece lies."""
        by_name = {token.content: (i, token) for i, token in self._added.items()}
        ids: list[int] = []
        for place, (is_token, piece) in enumerate(pieces):
            if is_token:
                ids.append(by_name[piece][0])
                continue
            if place and by_name[pieces[place - 1][1]][1].rstrip:
                piece = piece.lstrip()
            if place + 1 < len(pieces) and by_name[pieces[place + 1][1]][1].lstrip:
                piece = piece.rstrip()
            if piece:
                ids += self.ordinary_ids(piece, first=place == 0)
        return ids
