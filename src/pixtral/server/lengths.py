"""What would take others' time is refused early: texts far beyond the context, and bodies of millions of values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pixtral.server.errors import ApiError

if TYPE_CHECKING:
    from pixtral.text.protocol import Tokenizer

_CHARACTERS = 8  # for each token of the context; ordinary text has 2 to 5
_COMMAS = 524_288  # a hundred thousand tokens as numbers, several times
_COLONS = 65_536  # every field of four thousand messages
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
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


def check_structure(body: bytes) -> None:
    """Refuse JSON of more values than any request has: megabytes of text pass, millions of numbers or fields do not.

    Parsing them, and listing what is wrong with each, would hold up the event loop for a minute.

    Raises:
        ApiError: too many.
    """
    if body.count(b",") <= _COMMAS and body.count(b":") <= _COLONS:
        return
    bare = _STRING.sub(b"", body)  # commas in texts are no values
    commas, colons = bare.count(b","), bare.count(b":")
    if commas > _COMMAS or colons > _COLONS:
        found, most = (f"{commas:,} values", _COMMAS) if commas > _COMMAS else (f"{colons:,} fields", _COLONS)
        raise ApiError(
            400,
            f"the body has about {found}; expected at most {most:,}; send fewer in one request",
            code="too_many_values",
        )
