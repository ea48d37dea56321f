"""The form of an answer, as a Lark grammar: from a JSON schema, a regular expression, a list of choices or a grammar.

JSON schemas come from clients, so their size is limited, and one that only endless values satisfy is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pixtral.errors import StructureError

MAX_BYTES = 256 * 1024  # of a JSON schema
MAX_DEPTH = 64
MAX_PROPERTIES = 1000  # of one object; compiling takes their square
# White space between two tokens of JSON: none, a blank, or a line break and its indentation. Without a bound a model
# may write white space until the length limit.
WHITE_SPACE = r" |\n {0,16}"
# All escapes; \\u is allowed for control characters only, never for half a surrogate pair.
ESCAPES = 'nrbtf\\"u'

# Longest strings of the formats that have no bound but require an ending, which a model may never write.
LONGEST = {"email": 254, "hostname": 253, "uri": 1024}
# Keywords whose value is a schema, a list of schemas, or an object whose values are schemas.
_ONE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_LIST = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

MAX_TEXT = 64 * 1024  # characters of a pattern or grammar, and of all choices together
MAX_CHOICES = 4096

JsonSchema = Mapping[str, Any] | bool


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of an answer, as Lark.

    Attributes:
        param: the field of the request that asked for it; errors name it.
        body: of one rule, perhaps followed by other rules; empty if there is a `grammar`.
        grammar: a whole grammar, which cannot be combined with tools.
        json: whether all text is JSON.
    """

    param: str
    body: str = ""
    grammar: str = ""
    json: bool = False

    def rules(self, *, blank_first: bool = False) -> str:
        """A whole grammar.

        Args:
            blank_first: begin with a blank, as every text does in SentencePiece, which removes it when decoding.
        """
        if blank_first and not self.grammar and not self.body.startswith("<["):  # a control token has no blank
            return f'start: " " whole\nwhole: {self.body}\n'
        return self.grammar or f"start: {self.body}\n"


def json_object(param: str = "response_format") -> Form:
    """Any JSON object."""
    return Form(param, grammar_of({"type": "object"}), json=True)


def json_schema(schema: object, param: str = "response_format.json_schema.schema", *, lenient: bool = False) -> Form:
    """JSON that a schema allows.

    Args:
        lenient: keywords that cannot be enforced are ignored; otherwise they are refused.

    Raises:
        StructureError: see `check_schema`; keywords are checked when the form is compiled.
    """
    return Form(param, grammar_of(check_schema(schema, param), lenient=lenient), json=True)


def pattern(regex: object, param: str = "structured_outputs.regex") -> Form:
    """Text that a regular expression matches from beginning to end, in the syntax of Rust's regex crate."""
    text = _text(regex, param, "a regular expression")
    # Lark needs slashes and line breaks escaped; a character after a backslash is escaped already
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
    # one terminal, which compiles to a regular expression, is faster than a rule for each text
    return Form(param, "CHOICE\nCHOICE: " + " | ".join(quote(option) for option in dict.fromkeys(options)))


def lark(grammar: object, param: str = "structured_outputs.grammar") -> Form:
    """Text that a grammar in llguidance's variant of Lark describes."""
    return Form(param, grammar=_text(grammar, param, "a Lark grammar"))


def quote(text: str) -> str:
    """A literal of Lark."""
    return json.dumps(text, ensure_ascii=False)


def check_schema(schema: object, param: str) -> JsonSchema:
    """The schema itself, after checks of its type and limits.

    Raises:
        StructureError: not a schema, too large, too deep, or one that no finite value satisfies.
    """
    if not isinstance(schema, (Mapping, bool)):
        raise StructureError(f"{param} is of type {type(schema).__name__}; expected a JSON schema, an object", param)
    depth = _depth(schema)
    if depth > MAX_DEPTH:
        raise StructureError(
            f"{param} is nested {depth}+ levels deep, at most {MAX_DEPTH} are taken; flatten it", param
        )
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise StructureError(f"{param} has {size} bytes, at most {MAX_BYTES} are taken; make the schema smaller", param)
    widest = _widest(schema)
    if widest > MAX_PROPERTIES:
        raise StructureError(
            f"{param} has an object with {widest} properties, at most {MAX_PROPERTIES} are taken; divide it", param
        )
    if _endless(schema):
        raise StructureError(
            f"{param} asks for a value that contains itself without end; make the property that refers back optional, "
            "or give it an alternative such as null",
            param,
        )
    return schema


def grammar_of(schema: JsonSchema, *, lenient: bool = False) -> str:
    """The schema as a rule body of a Lark grammar.

    Args:
        schema: as `check_schema` returned it.
        lenient: keywords that the compiler cannot enforce are left out; otherwise they are errors when compiled.
    """
    options = {"whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES, "lenient": lenient}
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return "%json " + json.dumps({**_bounded(schema), "x-guidance": options}, ensure_ascii=False)


def _text(value: object, param: str, expected: str) -> str:
    if not isinstance(value, str) or not value:
        raise StructureError(f"{param} is {_short(value)}; expected {expected}", param)
    if len(value) > MAX_TEXT:
        raise StructureError(f"{param} has {len(value)} characters, at most {MAX_TEXT} are taken; shorten it", param)
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"


def _bounded(schema: Any) -> Any:
    """The schema with a longest length for strings of some formats, where it names none."""
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key, value in schema.items():
        if key in _LIST and isinstance(value, list):
            made[key] = [_bounded(one) for one in value]
        elif key in _ONE:
            made[key] = _bounded(value)
        elif key in _NAMED and isinstance(value, Mapping):
            made[key] = {name: _bounded(one) for name, one in value.items()}
    name = schema.get("format")
    if isinstance(name, str) and name in LONGEST:
        made.setdefault("maxLength", LONGEST[name])
    return made


def _depth(value: object) -> int:
    """Levels of nesting; stops counting beyond the limit."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [inner for one in level for inner in _inner(one)]
    return depth


def _widest(schema: object) -> int:
    """The largest number of properties of one object."""
    found, pending = 0, [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, Mapping) and isinstance(named := one.get("properties"), Mapping):
            found = max(found, len(named))
        pending += _inner(one)
    return found


def _inner(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


def _endless(schema: JsonSchema) -> bool:
    """Whether no finite value satisfies the schema, because it requires itself as a part.

    The smallest fixed point: a reference counts as finite once what it points to has been shown to be.
    """
    finite: dict[str, bool] = {}
    pending: list[object] = [schema]
    while pending:  # collect all targets of references
        one = pending.pop()
        if isinstance(one, Mapping):
            reference = one.get("$ref")
            if isinstance(reference, str) and reference not in finite:
                finite[reference] = False
        pending += _inner(one)
    changed = True
    while changed:
        changed = False
        for reference in [name for name, known in finite.items() if not known]:
            target = _resolve(schema, reference)
            if target is None or _ends(target, finite):  # the compiler reports references to nothing
                finite[reference] = changed = True
    return not _ends(schema, finite)


def _ends(schema: object, finite: Mapping[str, bool]) -> bool:
    if not isinstance(schema, Mapping):
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and not finite[reference]:
        return False
    for several in ("anyOf", "oneOf"):
        options = schema.get(several)
        if isinstance(options, list) and options and not any(_ends(option, finite) for option in options):
            return False
    together = schema.get("allOf")
    if isinstance(together, list) and not all(_ends(one, finite) for one in together):
        return False
    return not _may_only_be(schema, "object", "array") or _container_ends(schema, finite)


def _container_ends(schema: Mapping[str, Any], finite: Mapping[str, bool]) -> bool:
    properties, required, items = (schema.get(key) for key in ("properties", "required", "items"))
    if isinstance(properties, Mapping) and isinstance(required, list) and not _allows(schema, "array"):
        return all(_ends(properties.get(name), finite) for name in required if isinstance(name, str))
    least = schema.get("minItems")
    if isinstance(least, int) and least > 0 and not _allows(schema, "object"):
        first = schema.get("prefixItems")
        fixed = first[:least] if isinstance(first, list) else []
        return all(_ends(one, finite) for one in fixed) and (len(fixed) >= least or _ends(items, finite))
    return True


def _may_only_be(schema: Mapping[str, Any], *kinds: str) -> bool:
    given = schema.get("type")
    return given in kinds or (isinstance(given, list) and bool(given) and all(one in kinds for one in given))


def _allows(schema: Mapping[str, Any], kind: str) -> bool:
    given = schema.get("type")
    return given == kind or (isinstance(given, list) and kind in given)


def _resolve(root: object, reference: str) -> object | None:
    """What a reference within the schema points to; None for anything else."""
    if not reference.startswith("#"):
        return None
    found = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
