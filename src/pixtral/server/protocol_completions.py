"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pixtral.server.protocol import Items, Sampling

Ids = Annotated[Items[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
DEFAULT_TOKENS = 16  # OpenAI's


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: (
        str
        | Ids
        | Annotated[Items[str], Field(min_length=1, max_length=128)]
        | Annotated[Items[Ids], Field(min_length=1, max_length=128)]
    )
    max_tokens: int | None = Field(None, ge=1, description=f"{DEFAULT_TOKENS} if left out, as with OpenAI.")
    logprobs: int | None = Field(None, ge=0, le=20)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _not_too_many(self) -> CompletionRequest:
        if len(self.prompts) * (self.n or 1) > 128:
            raise ValueError("n times the number of prompts is more than 128; send several requests")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]
