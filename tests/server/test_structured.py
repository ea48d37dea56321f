"""Answers of a given form, through the openai package and over HTTP."""

from __future__ import annotations

import concurrent.futures
import enum
import json
import re

import openai
import pytest
from pydantic import BaseModel, Field

ASK = [{"role": "user", "content": "What colour is the circle?"}]


class Colour(enum.Enum):
    RED = "красный"
    GREEN = "grün"


class Shape(BaseModel):
    colour: Colour
    count: int = Field(ge=0, le=99)
    parts: list[Shape] | None


class Scene(BaseModel):
    title: str
    shapes: list[Shape] = Field(min_length=1, max_length=3)


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, **options):
    return client.chat.completions.create(
        model="pixtral-tiny", messages=ASK, **{"temperature": 0, "max_completion_tokens": 400, **options}
    )


def content(client, **options):
    choice = ask(client, **options).choices[0]
    assert choice.finish_reason == "stop"
    return choice.message.content


def outputs(**given):
    return {"extra_body": {"structured_outputs": given}}


def schema(body, **options):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": body, **options}}


def test_parse_with_pydantic(client):
    for seed in range(3):
        answer = client.chat.completions.parse(
            model="pixtral-tiny",
            messages=ASK,
            response_format=Scene,
            temperature=1,
            seed=seed,
            max_completion_tokens=2000,
        )
        scene = answer.choices[0].message.parsed
        assert isinstance(scene, Scene) and 1 <= len(scene.shapes) <= 3
        assert answer.choices[0].finish_reason == "stop"


def test_a_stream_is_parsed(client):
    with client.chat.completions.stream(
        model="pixtral-tiny", messages=ASK, response_format=Scene, temperature=0, max_completion_tokens=2000
    ) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events and isinstance(final.choices[0].message.parsed, Scene)


def test_json_object(client):
    for seed in range(3):
        found = content(client, response_format={"type": "json_object"}, temperature=1, seed=seed)
        assert isinstance(json.loads(found), dict)


def test_text_is_any_text(client):
    assert content(client, response_format={"type": "text"}) == content(client)


def test_patterns_choices_and_grammars(client):
    assert re.fullmatch(r"[a-f]{3}-\d{2}", content(client, **outputs(regex=r"[a-f]{3}-[0-9]{2}")))
    assert content(client, **outputs(choice=["да", "нет", "不"])) in ("да", "нет", "不")
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/\n'
    assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", content(client, **outputs(grammar=grammar)))
    assert json.loads(content(client, **outputs(json={"enum": ["ä", "ö"]}))) in ("ä", "ö")
    assert isinstance(json.loads(content(client, **outputs(json_object=True))), dict)


def test_several_choices_each_of_the_form(client):
    answer = ask(client, n=4, temperature=1, seed=3, response_format=schema({"type": "integer"}))
    assert all(isinstance(json.loads(choice.message.content), int) for choice in answer.choices)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_forms_beside_each_other_and_beside_none(client):
    alone = content(client)
    kinds = [{"enum": [f"answer {n}"]} for n in range(6)]

    def one(kind):
        return content(client, **({} if kind is None else {"response_format": schema(kind)}))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, [*kinds, None, None]))
    assert found == [f'"answer {n}"' for n in range(6)] + [alone, alone]


def test_cut_short_is_length(client):
    answer = ask(client, response_format=schema({"type": "array", "minItems": 500}), max_completion_tokens=20)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20


def test_log_probabilities_are_the_models_own(client):
    answer = ask(client, response_format=schema({"enum": ["no"]}), logprobs=True, top_logprobs=2).choices[0]
    tokens = answer.logprobs.content
    assert "".join(one.token for one in tokens).startswith('"no"')
    assert all(one.logprob <= 0 for one in tokens)


REFUSED = [
    ({"response_format": schema({"type": "strng"})}, "response_format.json_schema.schema", "strng"),
    ({"response_format": schema({"not": {}})}, "response_format.json_schema.schema", "strict"),
    ({"response_format": schema({"$ref": "#/x"})}, "response_format.json_schema.schema", "/x"),
    ({"response_format": schema({"$ref": "http://localhost/x"})}, "response_format.json_schema.schema", "localhost"),
    ({"response_format": schema({"type": "integer", "minimum": 2, "maximum": 1})}, None, "Unsatisfiable"),
    ({"response_format": schema({"type": "string", "pattern": "(?=a)"})}, None, "look-around"),
    (
        {"response_format": schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})},
        "response_format.json_schema.schema",
        "without end",
    ),
    ({"response_format": schema(json.loads('{"items":' * 80 + "{}" + "}" * 80))}, None, "nested"),
    ({"response_format": schema({"enum": ["x" * 1000 + str(n) for n in range(400)]})}, None, "bytes"),
    ({"response_format": {"type": "yaml"}}, None, ""),
    ({"response_format": {"type": "json_schema"}}, None, "json_schema"),
    (outputs(regex="("), "structured_outputs.regex", "unclosed"),
    (outputs(regex="[^\\x00-\\U0010ffff]"), "structured_outputs.regex", "no answer"),
    (outputs(regex="(a?){5000}(a){5000}"), "structured_outputs.regex", ""),
    (outputs(choice=[]), "structured_outputs.choice", "list"),
    (outputs(grammar="start: nowhere"), "structured_outputs.grammar", "nowhere"),
    (outputs(grammar="start: <[10]>"), "structured_outputs.grammar", "control token"),
    (outputs(grammar="start: a\na: a"), "structured_outputs.grammar", "no answer"),
    (outputs(regex="a", choice=["b"]), "structured_outputs", "one of"),
    (outputs(), "structured_outputs", "one of"),
    (outputs(jsn={}), None, "jsn"),
    ({"response_format": {"type": "json_object"}, **outputs(regex="a")}, "structured_outputs", "keep one"),
    ({"extra_body": {"structured_outputs": {"regex": "a"}, "min_tokens": 5}}, "min_tokens", "leave it out"),
]


@pytest.mark.parametrize(("options", "param", "says"), REFUSED)
def test_what_cannot_be_honoured(client, options, param, says):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **options)
    assert says in str(error.value)
    if param is not None:
        assert error.value.param == param


def test_a_grammar_that_fails_on_its_way_harms_nobody_else(client, live):
    alone = content(client)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        others = [pool.submit(content, client) for _ in range(3)]
        with pytest.raises(openai.BadRequestError, match="control token"):
            ask(client, **outputs(grammar='start: "a" <[10]>'))
        assert [other.result() for other in others] == [alone] * 3
    assert live.state.engine.is_alive


def test_without_strictness_unknown_keywords_are_let_go(client):
    found = content(client, response_format=schema({"type": "boolean", "not": {"const": 3}}, strict=False))
    assert found in ("true", "false")


def test_a_form_is_compiled_once(client, live):
    form = {"response_format": schema({"enum": ["only once"]})}
    content(client, **form)
    before = live.state.grammars.num_compiled
    for _ in range(3):
        content(client, **form)
    assert live.state.grammars.num_compiled == before
