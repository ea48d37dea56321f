"""The named special tokens of a tokenizer (bos, eos, unk, pad) as the properties that Transformers users know."""

from __future__ import annotations

from pixtral.errors import PromptError


class SpecialTokens:
    """Mixed into the tokenizers; they provide `token_to_id` and `unk_token_id` for unknown names."""

    _named: dict[str, str | None]

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, None if the vocabulary has no such token."""
        raise NotImplementedError

    def _id_of(self, name: str) -> int | None:
        token = self._named.get(name)
        if token is None:
            return None
        found = self.token_to_id(token)
        if found is None and name != "unk_token":
            unknown = self._named.get("unk_token")
            found = None if unknown is None else self.token_to_id(unknown)
        return found

    def _set(self, name: str, token: str | None) -> None:
        if token is not None and self.token_to_id(token) is None:
            raise PromptError(f"{name} cannot be {token!r}: the vocabulary has no such token")
        self._named[name] = token

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Names and tokens, those that are set."""
        return {name: token for name, token in self._named.items() if token is not None}

    @property
    def bos_token(self) -> str | None:
        """Beginning of sequence."""
        return self._named.get("bos_token")

    @bos_token.setter
    def bos_token(self, token: str | None) -> None:
        self._set("bos_token", token)

    @property
    def eos_token(self) -> str | None:
        """End of sequence."""
        return self._named.get("eos_token")

    @eos_token.setter
    def eos_token(self, token: str | None) -> None:
        self._set("eos_token", token)

    @property
    def unk_token(self) -> str | None:
        """For what the vocabulary lacks."""
        return self._named.get("unk_token")

    @unk_token.setter
    def unk_token(self, token: str | None) -> None:
        self._set("unk_token", token)

    @property
    def pad_token(self) -> str | None:
        """For padding."""
        return self._named.get("pad_token")

    @pad_token.setter
    def pad_token(self, token: str | None) -> None:
        self._set("pad_token", token)

    @property
    def bos_token_id(self) -> int | None:
        """Id of `bos_token`."""
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of `eos_token`."""
        return self._id_of("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """Id of `unk_token`."""
        return self._id_of("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of `pad_token`; the unknown token's where the vocabulary has no padding token."""
        return self._id_of("pad_token")

    @property
    def pad_token_type_id(self) -> int:
        """Token type id of padding."""
        return 0
