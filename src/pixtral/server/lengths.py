"""Texts far beyond the context are refused by their beginning: reading all of them would take others' time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pixtral.server.errors import ApiError

if TYPE_CHECKING:
    from pixtral.text.protocol import Tokenizer

_CHARACTERS = 8  # for each token of the context; ordinary text has 2 to 5
_CUT = 64  # tokens that the place of the cut may add


def check_length(texts: Iterable[str], tokenizer: Tokenizer, context: int, param: str) -> None:
    """Refuse texts whose first characters, 8 for each token of the context, have more tokens than the context.

    Raises:
        ApiError: they have. A text that passes may still be too long, which is seen when all of it has been read.
    """
    room, beginnings = context * _CHARACTERS, []
    for text in texts:
        beginnings.append(text[:room])
        room -= len(text)
        if room < 0:
            break
    else:
        return
    count = 0
    for text in beginnings:
        count += len(tokenizer.ordinary_ids(text))
        if count > context + _CUT:
            raise ApiError(
                400,
                f"the text has more than {count:,} tokens, but the context is {context:,} tokens, the answer included; "
                "shorten the text",
                param=param,
                code="context_length_exceeded",
            )
