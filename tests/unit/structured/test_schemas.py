"""What clients send as schemas, forms and tools: taken, or refused with found, expected and what to do."""

from __future__ import annotations

import json

import pytest

from pixtral.errors import PixtralError, StructureError
from pixtral.structured import formats
from pixtral.structured.formats import check_schema, grammar_of
from pixtral.structured.tools import read_tools

NODE = {"$ref": "#/$defs/node"}


def node(schema):
    return {**NODE, "$defs": {"node": schema}}


def needing(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


def body(schema, **options):
    text = grammar_of(schema, **options)
    assert text.startswith("%json ")
    return json.loads(text.removeprefix("%json "))


ENDLESS = [
    node(needing(next=NODE)),
    node({"type": "array", "items": NODE, "minItems": 1}),
    node({"type": "array", "prefixItems": [{}, NODE], "minItems": 2}),
    node({"anyOf": [needing(a=NODE), needing(b=NODE)]}),
    node({"oneOf": [needing(a=NODE)]}),
    node({"allOf": [{}, needing(a=NODE)]}),
    {"$ref": "#"},
    needing(a={"$ref": "#"}),
    {"$ref": "#/$defs/a", "$defs": {"a": needing(b={"$ref": "#/$defs/b"}), "b": needing(a={"$ref": "#/$defs/a"})}},
]
ENDING = [
    node({"type": "object", "properties": {"next": NODE}}),
    node(needing(next={"anyOf": [NODE, {"type": "null"}]})),
    node(needing(children={"type": "array", "items": NODE})),
    node({"type": ["object", "null"], "properties": {"a": NODE}, "required": ["a"]}),
    node({"type": "array", "prefixItems": [{}, NODE], "minItems": 1}),
    node({"anyOf": [needing(a=NODE), {"type": "string"}]}),
    needing(a={"$ref": "#/properties/b"}, b={"type": "string"}),
    {"$ref": "#/$defs/missing"},  # the compiler's to report
    {"$ref": "https://elsewhere"},
    needing(a={"enum": [{"$ref": "#"}]}),
    True,
    {},
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_endless_schemas_are_refused(schema):
    with pytest.raises(StructureError, match="contains itself without end"):
        check_schema(schema, "x")


@pytest.mark.parametrize("schema", ENDING)
def test_schemas_that_end(schema):
    assert check_schema(schema, "x") == schema


def test_limits():
    deep = {}
    for _ in range(63):
        deep = {"items": deep}
    assert check_schema(deep, "x")
    with pytest.raises(StructureError, match=r"x is nested .* levels deep, at most 64"):
        check_schema({"items": deep}, "x")
    with pytest.raises(StructureError, match="bytes, at most"):
        check_schema({"enum": ["й" * 140_000]}, "x")
    wide = {"properties": {f"p{n}": {} for n in range(1001)}}
    with pytest.raises(StructureError, match="1001 properties, at most 1000"):
        check_schema({"items": {"anyOf": [wide]}}, "x")
    for wrong in ("{}", None, 5, []):
        with pytest.raises(StructureError, match="expected a JSON schema"):
            check_schema(wrong, "x")


def test_a_very_deep_schema_is_refused_without_recursion():
    deep: object = {}
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(StructureError, match="levels deep"):
        check_schema({"enum": deep}, "x")
    while deep:  # or freeing it would recurse
        deep = deep.pop()  # type: ignore[attr-defined]


def test_options_of_the_compiler_are_ours():
    made = body({"type": "string", "x-guidance": {"whitespace_pattern": "x*", "lenient": True}})
    assert made["x-guidance"]["lenient"] is False and made["x-guidance"]["whitespace_pattern"] != "x*"
    assert body({}, lenient=True)["x-guidance"]["lenient"] is True
    assert body(False)["not"] == {} and "not" not in body(True)


def test_formats_without_an_end_are_bounded_where_they_are_schemas():
    email = {"type": "string", "format": "email"}
    bounded = {**email, "maxLength": 254}
    made = body(
        {"properties": {"format": email, "b": {"items": [email], "anyOf": [{"items": email}]}}, "enum": [email]}
    )
    assert made["properties"]["format"] == bounded
    assert made["properties"]["b"] == {"items": [bounded], "anyOf": [{"items": bounded}]}
    assert made["enum"] == [email], "a value is no schema"
    assert body({**email, "maxLength": 9})["maxLength"] == 9
    assert "maxLength" not in body({"format": "date"})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: formats.pattern(None), "expected a regular expression"),
        (lambda: formats.pattern(""), "expected a regular expression"),
        (lambda: formats.pattern("x" * 70_000), "at most 65536"),
        (lambda: formats.choice("abc"), "expected a list"),
        (lambda: formats.choice([]), "expected a list"),
        (lambda: formats.choice(["a", ""]), "not empty"),
        (lambda: formats.choice(["a", 1]), "is 1"),
        (lambda: formats.choice(["x"] * 5000), "at most 4096"),
        (lambda: formats.choice(["x" * 60_000, "y" * 60_000]), "shorten"),
        (lambda: formats.lark({}), "expected a Lark grammar"),
    ],
)
def test_forms_that_are_none(make, says):
    with pytest.raises(StructureError, match=says) as error:
        make()
    assert error.value.param.startswith("structured_outputs.") and isinstance(error.value, (PixtralError, ValueError))


# --- tools


def tool(name="f", **function):
    return {"type": "function", "function": {"name": name, **function}}


def test_tools_are_read():
    use = read_tools([tool("a", description="does a"), tool("b-2.c", parameters={"properties": {"x": {}}})])
    assert (use.choice, use.name, use.parallel) == ("auto", None, True)
    assert use.tools[0].arguments == {"type": "object", "properties": {}, "additionalProperties": False}
    assert use.tools[1].arguments == {"type": "object", "properties": {"x": {}}}
    assert [one["function"]["name"] for one in use.definitions] == ["a", "b-2.c"]
    assert use.definitions[0]["function"]["description"] == "does a"


def test_choices():
    tools = [tool("a"), tool("b")]
    assert read_tools(tools, "none").choice == "none"
    named = read_tools(tools, {"type": "function", "function": {"name": "b"}}, False)
    assert (named.choice, named.name, named.parallel) == ("required", "b", False)
    assert '\\"a\\"' not in named.calls(9).body and '\\"b\\"' in named.calls(9).body
    assert read_tools([]) is None and read_tools([], "none") is None


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{}], None, "tools[0]"),
        ([5], None, "tools[0]"),
        ([{"type": "function", "function": None}], None, "tools[0]"),
        ([{"type": "retrieval"}], None, "tools[0]"),
        ([tool("")], None, "tools[0].function.name"),
        ([tool("a b")], None, "tools[0].function.name"),
        ([tool("x" * 65)], None, "tools[0].function.name"),
        ([tool("a"), tool("a")], None, "tools[1].function.name"),
        ([tool(parameters=5)], None, "tools[0].function.parameters"),
        ([tool(parameters={"type": "string"})], None, "tools[0].function.parameters"),
        ([tool(parameters=True)], None, "tools[0].function.parameters"),
        ([tool(f"t{n}") for n in range(129)], None, "tools"),
        ([tool()], "always", "tool_choice"),
        ([tool()], {"type": "function", "function": {"name": "g"}}, "tool_choice"),
        ([tool()], {"function": "f"}, "tool_choice"),
        ([], "required", "tool_choice"),
        ([], "auto", "tool_choice"),
        ([], {"type": "function", "function": {"name": "f"}}, "tool_choice"),
    ],
)
def test_tools_that_are_none(tools, choice, param):
    with pytest.raises(StructureError) as error:
        read_tools(tools, choice)
    assert error.value.param == param


def test_a_grammar_beside_tools_is_refused():
    with pytest.raises(StructureError, match="exclude each other"):
        read_tools([tool()]).with_content(formats.lark('start: "a"'), 9)
