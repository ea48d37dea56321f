"""The tokenizer interface that the rest of the package uses; both tokenizers implement it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Control tokens have ids of their own and are looked up by name, never by number."""

    padding_side: str
    model_max_length: int

    def __len__(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def byte_level(self) -> bool: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def all_special_ids(self) -> list[int]: ...

    def text_to_ids(self, text: str) -> list[int]:
        """The ids of a text as it stands, nothing added."""

    def ordinary_ids(self, text: str, *, first: bool = True) -> list[int]:
        """The ids of a text in which nothing is a control token; `first`: it stands at the prompt's beginning."""

    def ids_to_text(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of these ids; bytes that are no UTF-8 become U+FFFD."""

    def id_to_bytes(self, token_id: int) -> bytes | None:
        """The bytes one id stands for; None for a control token."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, None if the vocabulary has no such token."""
