"""The vocabulary of HuggingFaceTokenizer: tokens and ids, texts and rendered prompts to ids."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from pixtral.text.control import TokenFinder
from pixtral.text.special_tokens import SpecialTokens
from pixtral.text.templates import Rendered

if TYPE_CHECKING:
    import tokenizers


class HuggingFaceVocabulary(SpecialTokens):
    """Mixed into HuggingFaceTokenizer, which provides `backend`."""

    backend: tokenizers.Tokenizer
    is_fast = True  # Transformers' word for a tokenizer over the `tokenizers` package

    @property
    def vocab_size(self) -> int:
        """Number of ids of the base vocabulary, without added tokens."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Tokens and ids."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        """The added tokens, the special ones among them, and their ids."""
        return {token.content: token_id for token_id, token in self._added.items()}

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self.backend.get_added_tokens_decoder())

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Ids and `tokenizers.AddedToken`s of the added tokens, the special ones among them."""
        return dict(self._added)

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Ids of the control tokens, ascending."""
        named = [self.token_to_id(token) for token in self.special_tokens_map.values()]
        added = {i for i, token in self._added.items() if token.special}
        return sorted(added.union(i for i in named if i is not None))

    @property
    def all_special_tokens(self) -> list[str]:
        """Names of the control tokens, in the order of their ids."""
        return [str(self.backend.id_to_token(i)) for i in self.all_special_ids]

    @cached_property
    def control_tokens(self) -> TokenFinder:
        """Finds the added tokens, which must not be read from a user's text."""
        return TokenFinder(token.content for token in self._added.values())

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, None if the vocabulary has no such token."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the ids of several; an unknown one gets the unknown token's id, or None."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend.id_to_token(int(i)) for i in ids if int(i) not in special]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of these tokens."""
        decoder = self.backend.decoder
        return "".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).tokens)

    @cached_property
    def byte_level(self) -> bool:
        """Whether every token is bytes, as in Tekken, so that a text can be decoded id by id."""
        return type(self.backend.decoder).__name__ == "ByteLevel"

    joins_over_special = True  # a skipped control token leaves no mark between the bytes around it

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes one id stands for; None for a control token."""
        if token_id in self._special_set:
            return None
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if not self.byte_level:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes([int(token[3:5], 16)])
            return str(token).replace("▁", " ").encode("utf-8")
        table = _byte_of_character()
        if all(character in table for character in token):
            return bytes(table[character] for character in token)
        return str(token).encode("utf-8")

    @cached_property
    def _special_set(self) -> frozenset[int]:
        return frozenset(self.all_special_ids)

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
        changed = pickle.loads(pickle.dumps(self.backend.pre_tokenizer))  # noqa: S301  an object of this process
        changed.__setstate__(state.replace(b'"prepend_scheme":"first"', b'"prepend_scheme":"never"'))
        return changed

    def rendered_ids(self, rendered: Rendered) -> list[int]:
        """The ids of a rendered chat template: its own control tokens as such, the conversation's as text."""
        if not rendered.mask.stand_ins:
            return self.text_to_ids(rendered.text)
        return self.pieces_to_ids(rendered.split())

    def pieces_to_ids(self, pieces: Sequence[tuple[bool, str]]) -> list[int]:
        """The ids of (is a control token, piece) in order."""
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


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte for each printable character that byte-level vocabularies write (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + place): byte for place, byte in enumerate(rest)}
