"""The vocabulary of MistralCommonTokenizer: tokens, ids, control tokens, and text to ids and back by mistral-common."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from pixtral.errors import PromptError, Refused, refuse

if TYPE_CHECKING:
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

_LANGUAGE = re.compile(r"^lang:[a-z]{2}")


class MistralVocabulary:
    """Mixed into MistralCommonTokenizer, which provides `tokenizer`."""

    tokenizer: MistralTokenizer[Any, Any, Any, Any, Any]

    @property
    def backend(self) -> Any:
        """mistral-common's Tekkenizer or SentencePieceTokenizer."""
        return self.tokenizer.instruct_tokenizer.tokenizer

    @property
    def is_tekken(self) -> bool:
        """Whether this is a Tekken vocabulary and not a SentencePiece one."""
        return hasattr(self.backend, "id_to_byte_piece")

    @property
    def byte_level(self) -> bool:
        """Whether every token is bytes, so that a text can be decoded id by id."""
        return self.is_tekken

    is_fast = False  # Transformers' word for a tokenizer over the `tokenizers` package
    joins_over_special = False  # a control token ends what came before it, skipped or not

    @property
    def mode(self) -> ValidationMode:
        """The validation mode, a mistral-common enumeration."""
        return self.tokenizer.mode

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return int(self.backend.n_words)

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens, ascending."""
        if self.is_tekken:
            return sorted(self.backend.special_ids)
        return [i for i in range(self.vocab_size) if self.backend.is_special(i)]

    @cached_property
    def all_special_tokens(self) -> list[str]:
        """Names of the control tokens, in the order of their ids."""
        return [self.backend.id_to_piece(i) for i in self.all_special_ids]

    @cached_property
    def _special(self) -> dict[str, int]:
        return dict(zip(self.all_special_tokens, self.all_special_ids, strict=True))

    @cached_property
    def _bytes_to_id(self) -> dict[bytes, int]:
        """Of a Tekken vocabulary, without the control tokens."""
        first = self.backend.num_special_tokens
        return {self.backend.id_to_byte_piece(i): i for i in range(first, self.vocab_size)}

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, None if the vocabulary has no such token."""
        if self.is_tekken:
            found = self._bytes_to_id.get(token.encode("utf-8"))
            return self._special.get(token) if found is None else found
        found = int(self.backend._model.piece_to_id(token))
        return None if found == self.backend.unk_id and token != self.backend.id_to_piece(found) else found

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes one id stands for; None for a control token.

        In a SentencePiece vocabulary a blank before a word belongs to the word, also at the start of a text.
        """
        if self.backend.is_special(token_id):
            return None
        if self.is_tekken:
            return bytes(self.backend.id_to_byte_piece(token_id))
        piece = str(self.backend.id_to_piece(token_id))
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode("utf-8")

    def get_vocab(self) -> dict[str, int]:
        """Tokens and ids, by id. Several ids of incomplete UTF-8 share the token "\ufffd", so some are missing."""
        known = {token: self._id_or_unknown(token) for token in self.backend.vocab()}
        return dict(sorted(known.items(), key=lambda entry: entry[1]))

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several."""
        if isinstance(ids, int):
            tokens = self.convert_ids_to_tokens([ids], skip_special_tokens)
            if not tokens:
                raise PromptError(f"id {ids} is the control token {self.backend.id_to_piece(ids)!r}, which is skipped")
            return tokens[0]
        kept = [int(i) for i in ids if not (skip_special_tokens and self.backend.is_special(int(i)))]
        for token_id in kept:
            if not 0 <= token_id < self.vocab_size:
                raise PromptError(f"id {token_id} is not in the vocabulary of {self.vocab_size}")
        return [self.backend.id_to_piece(i) for i in kept]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the ids of several; an unknown one gets the unknown token's id, with a warning."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if self.token_to_id(tokens) is None:
            warnings.warn(
                f"the vocabulary has no token {tokens!r}; using {self.backend.id_to_piece(0)!r}", stacklevel=2
            )
        return self._id_or_unknown(tokens)

    def _id_or_unknown(self, token: str) -> int:
        found = self.token_to_id(token)
        return int(self.backend.unk_id) if found is None else found

    def tokenize(
        self, text: str, return_offsets_mapping: bool = False, split_special_tokens: bool = False, **kwargs: object
    ) -> list[str]:
        """The tokens of a text."""
        refuse(kwargs, "tokenize()")
        if return_offsets_mapping or split_special_tokens:
            raise Refused(
                "return_offsets_mapping and split_special_tokens are not offered by mistral-common; leave them out"
            )
        tokens: list[str] = self.convert_ids_to_tokens(self.text_to_ids(text))
        return tokens

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
        """The beginning of sequence before the ids, and in "finetuning" mode the end of sequence after them."""
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

    def _not_offered(self, name: str) -> NoReturn:
        raise NotImplementedError(f"{name}() is not offered: mistral-common's vocabularies and templates are fixed")

    def added_tokens_decoder(self) -> NoReturn:
        """Not offered."""
        self._not_offered("added_tokens_decoder")

    def add_special_tokens(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered."""
        self._not_offered("add_special_tokens")

    def add_tokens(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered."""
        self._not_offered("add_tokens")

    def convert_added_tokens(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered."""
        self._not_offered("convert_added_tokens")

    def get_chat_template(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered."""
        self._not_offered("get_chat_template")

    def save_chat_templates(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered."""
        self._not_offered("save_chat_templates")

    def save_vocabulary(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered."""
        self._not_offered("save_vocabulary")
