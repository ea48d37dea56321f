"""What form an answer shall have: JSON of some schema, a pattern, one of several choices, a grammar."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pixtral.errors import StructureError
from pixtral.structured.schemas import check_schema, grammar_of

MAX_TEXT = 64 * 1024  # characters of a pattern or grammar, and of all choices together
MAX_CHOICES = 4096


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of an answer, as Lark.

    Attributes:
        param: the field of the request that asked for it; errors name it.
        body: of one rule, other rules may stand behind it; empty when there is a `grammar`.
        grammar: a whole grammar, which nothing can be put beside.
        json: whether all text is JSON.
    """

    param: str
    body: str = ""
    grammar: str = ""
    json: bool = False

    def rules(self, *, blank_first: bool = False) -> str:
        """A whole grammar.

        Args:
            blank_first: have a blank come first, as it does with SentencePiece, where it is not shown.
        """
        if blank_first and not self.grammar and not self.body.startswith("<["):  # a control token has none
            return f'start: " " whole\nwhole: {self.body}\n'
        return self.grammar or f"start: {self.body}\n"


def json_object(param: str = "response_format") -> Form:
    """Any JSON object."""
    return Form(param, grammar_of({"type": "object"}), json=True)


def json_schema(schema: object, param: str = "response_format.json_schema.schema", *, lenient: bool = False) -> Form:
    """JSON that a schema allows.

    Args:
        lenient: keywords that cannot be enforced are let go; otherwise they are refused.

    Raises:
        StructureError: see `check_schema`; keywords are looked at when the form is compiled.
    """
    return Form(param, grammar_of(check_schema(schema, param), lenient=lenient), json=True)


def pattern(regex: object, param: str = "structured_outputs.regex") -> Form:
    """Text that a regular expression matches from beginning to end, in the syntax of Rust's regex crate."""
    text = _text(regex, param, "a regular expression")
    # Lark's own quoting of slashes and line breaks; a backslash keeps what follows it
    quoted, escaped = [], False
    for character in text:
        special = {"/": r"\/", "\n": r"\n", "\r": r"\r"}.get(character, character)
        quoted.append(special[1:] if escaped and special.startswith("\\") and special != "\\" else special)
        escaped = character == "\\" and not escaped
    return Form(param, f"/{''.join(quoted)}/")


def choice(options: object, param: str = "structured_outputs.choice") -> Form:
    """One of several texts."""
    if isinstance(options, (str, bytes)) or not isinstance(options, Sequence) or not options:
        raise StructureError(f"{param} is {_short(options)}; expected a list of at least one text", param)
    if len(options) > MAX_CHOICES:
        raise StructureError(f"{param} has {len(options)} texts, at most {MAX_CHOICES} are taken", param)
    for option in options:
        _text(option, param, "a list of texts that are not empty")
    if sum(map(len, options)) > MAX_TEXT:
        raise StructureError(f"{param} has more than {MAX_TEXT} characters; shorten the texts", param)
    # one terminal, which is a regular expression, not as many rules as there are texts
    return Form(param, "CHOICE\nCHOICE: " + " | ".join(quote(option) for option in dict.fromkeys(options)))


def lark(grammar: object, param: str = "structured_outputs.grammar") -> Form:
    """Text that a grammar in llguidance's variant of Lark describes."""
    return Form(param, grammar=_text(grammar, param, "a Lark grammar"))


def quote(text: str) -> str:
    """A literal of Lark."""
    return json.dumps(text, ensure_ascii=False)


def _text(value: object, param: str, expected: str) -> str:
    if not isinstance(value, str) or not value:
        raise StructureError(f"{param} is {_short(value)}; expected {expected}", param)
    if len(value) > MAX_TEXT:
        raise StructureError(f"{param} has {len(value)} characters, at most {MAX_TEXT} are taken; shorten it", param)
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"
