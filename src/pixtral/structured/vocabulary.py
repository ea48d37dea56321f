"""A tokenizer as llguidance sees it: the bytes of every id, and which ids are no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pixtral.errors import MissingDependency

if TYPE_CHECKING:
    import llguidance


class GrammarTokenizer(Protocol):
    """What grammars ask of a tokenizer; see `pixtral.text.protocol.Tokenizer`."""

    @property
    def byte_level(self) -> bool: ...
    @property
    def all_special_ids(self) -> list[int]: ...
    def __len__(self) -> int: ...
    def ordinary_ids(self, text: str) -> list[int]: ...
    def id_to_bytes(self, token_id: int) -> bytes | None: ...
    def token_to_id(self, token: str) -> int | None: ...


class _Tokens:
    """The attributes that llguidance reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: GrammarTokenizer, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        special = set(tokenizer.all_special_ids)
        self.special_token_ids = sorted(special)
        # a name for each control token, which nobody can write in a grammar by chance; ids without bytes never come
        self.tokens = [
            f"<control-{i}>".encode() if i in special else tokenizer.id_to_bytes(i) or b""
            for i in range(len(tokenizer))
        ]
        self._ids: dict[bytes, int] = {}
        if not tokenizer.byte_level:
            # a character may have a piece besides its byte; only in the piece is a blank one that comes before a word
            self._ids = {data: i for i, data in enumerate(self.tokens) if i not in special}
            self.tokens = [data if i in special or self._ids[data] == i else b"" for i, data in enumerate(self.tokens)]
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens for text that a grammar forces, whose bytes are exactly that text."""
        if self._tokenizer.byte_level:
            return self._tokenizer.ordinary_ids(text if isinstance(text, str) else text.decode("utf-8", "replace"))
        # SentencePiece would put a blank before the first word; the longest token at each place does instead
        data, ids, start = text.encode() if isinstance(text, str) else text, list[int](), 0
        while start < len(data):
            size = next(n for n in range(self._longest, 0, -1) if data[start : start + n] in self._ids)
            ids.append(self._ids[data[start : start + size]])
            start += size
        return ids


def make_vocabulary(tokenizer: GrammarTokenizer, eos_token_ids: Sequence[int]) -> llguidance.LLTokenizer:
    """The vocabulary; about a second for 131,072 tokens.

    Args:
        eos_token_ids: tokens that end an answer, at least one.

    Raises:
        MissingDependency: llguidance is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependency(
            "answers of a given form need llguidance, which is not installed; pip install 'pixtral[server]'"
        ) from error
    assert eos_token_ids, "an answer must be able to end"
    tokens: Any = _Tokens(tokenizer, eos_token_ids[0])
    return llguidance.LLTokenizer(tokens, eos_token=list(eos_token_ids))
