"""Tools through the openai package: calls, streams, results, and everything that cannot be honoured."""

from __future__ import annotations

import json

import openai
import pytest
from server.conftest import serving

import pixtral

ASK = [{"role": "user", "content": "What colour is the circle?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, CLOCK]
TRIGGER = "[TOOL_CALLS]"
CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, messages=ASK, **options):
    return client.chat.completions.create(
        model="pixtral-tiny", messages=messages, **{"temperature": 0, "max_completion_tokens": 400, **options}
    )


def named(name):
    return {"type": "function", "function": {"name": name}}


def check_call(call):
    assert len(call.id) == 9 and call.id.isalnum() and call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "days"} and 1 <= arguments["days"] <= 9
    else:
        assert call.function.name == "get_time" and arguments == {}


@pytest.mark.parametrize("seed", range(4))
def test_required(client, seed):
    answer = ask(client, tools=TOOLS, tool_choice="required", temperature=1, seed=seed)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    calls = choice.message.tool_calls
    assert calls and len({call.id for call in calls}) == len(calls)
    for call in calls:
        check_call(call)


def test_a_named_tool_is_called_once(client):
    for name in ("get_weather", "get_time"):
        calls = ask(client, tools=TOOLS, tool_choice=named(name)).choices[0].message.tool_calls
        assert [call.function.name for call in calls] == [name]
        check_call(calls[0])


def bias(live, text, amount):
    (token,) = live.state.processor.tokenizer.ordinary_ids(text) if text != TRIGGER else (trigger(live),)
    return {"logit_bias": {str(token): amount}}


def trigger(live):
    return live.state.processor.tokenizer.token_to_id(TRIGGER)


def test_one_call_at_a_time(client, live):
    several = {"tools": [CLOCK], "tool_choice": "required", **bias(live, ",", 100)}  # as if the model never had enough
    answer = ask(client, max_completion_tokens=80, **several).choices[0]
    assert len(answer.message.tool_calls) > 1 and answer.finish_reason == "length"
    one = ask(client, parallel_tool_calls=False, **several).choices[0]
    assert len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls"


def test_auto_and_none_may_say_words(client):
    plain = ask(client).choices[0].message.content
    for choice in ("auto", "none", openai.NOT_GIVEN):
        answer = ask(client, tools=TOOLS, tool_choice=choice).choices[0]
        assert answer.message.content and answer.message.tool_calls is None and answer.finish_reason == "stop"
    assert plain


def test_auto_may_call(client, live):
    answer = ask(client, tools=TOOLS, **bias(live, TRIGGER, 100)).choices[0]  # as if the model wanted to
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    for call in answer.message.tool_calls:
        check_call(call)
    without = ask(client, tools=TOOLS, tool_choice="none", **bias(live, TRIGGER, 100)).choices[0]
    assert without.message.tool_calls is None and without.finish_reason == "stop" and without.message.content


@pytest.mark.parametrize("choice", ["required", named("get_weather")], ids=["required", "named"])
def test_a_stream_joins_to_the_whole(client, choice):
    options = {"tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": 5}
    whole = ask(client, **options).choices[0].message.tool_calls
    calls, content, reasons, pieces = {}, "", [], 0
    for chunk in ask(client, stream=True, **options):
        for one in chunk.choices:
            content += one.delta.content or ""
            reasons.append(one.finish_reason)
            for delta in one.delta.tool_calls or ():
                pieces += 1
                if delta.id is not None:
                    assert delta.index == len(calls) and delta.type == "function"
                    calls[delta.index] = [delta.function.name, ""]
                calls[delta.index][1] += delta.function.arguments or ""
    assert content == "" and reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}
    assert [tuple(call) for call in calls.values()] == [(c.function.name, c.function.arguments) for c in whole]
    assert pieces > len(calls), "arguments come as they are written"


def test_the_stream_helper_of_the_package(client):
    tool = openai.pydantic_function_tool(__import__("pydantic").create_model("Paint", colour=(str, ...)))
    with client.chat.completions.stream(
        model="pixtral-tiny",
        messages=ASK,
        tools=[tool],
        tool_choice="required",
        temperature=0,
        max_completion_tokens=300,
        parallel_tool_calls=False,
    ) as stream:
        answer = stream.get_final_completion()
    parsed = answer.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(parsed.colour, str)


def test_a_call_its_result_and_an_answer(client):
    first = ask(client, tools=TOOLS, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "red"} for call in first.tool_calls]
    second = ask(client, [*ASK, first, *results], tools=TOOLS).choices[0]
    assert second.message.content and second.finish_reason == "stop"
    third = ask(client, [*ASK, first, *results, {"role": "user", "content": "And the square?"}], tools=TOOLS)
    assert third.choices[0].message.content  # the user may speak before the assistant has


def test_results_are_read(client):
    def tokens(content):
        messages = [
            *ASK,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": CALL["id"], "content": content},
        ]
        return ask(client, messages, tools=TOOLS).usage.prompt_tokens

    assert tokens("a long result of many words, which are tokens") > tokens("x") + 5


def test_names_of_other_servers_and_words_beside_calls(client):
    call = {**CALL, "id": "call_0123456789abcdefghijklmn"}
    messages = [
        *ASK,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "noon"}]},
    ]
    assert ask(client, messages, tools=TOOLS).choices[0].message.content


def test_calls_cut_short_are_length(client):
    answer = ask(client, tools=TOOLS, tool_choice=named("get_weather"), max_completion_tokens=20)
    assert answer.choices[0].finish_reason == "length"


def test_an_answer_of_a_form_or_calls(client, live):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    words = ask(client, tools=TOOLS, response_format=form, **bias(live, TRIGGER, -100)).choices[0]
    assert json.loads(words.message.content) in ("yes", "no")
    calls = ask(client, tools=TOOLS, response_format=form, **bias(live, TRIGGER, 100)).choices[0]
    assert calls.finish_reason == "tool_calls" and calls.message.content is None


ASSISTANT = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": CALL["id"], "content": "noon"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([*ASK, ASSISTANT, {**RESULT, "tool_call_id": "zzzzzzzzz"}], "messages[2].tool_call_id"),
        ([*ASK, RESULT], "messages[1].tool_call_id"),
        ([RESULT], "messages[0].tool_call_id"),
        ([*ASK, ASSISTANT, RESULT, RESULT], "messages[3].tool_call_id"),
        ([*ASK, ASSISTANT, *ASK], "messages[2].role"),
        ([*ASK, ASSISTANT], "messages"),
        ([*ASK, {**ASSISTANT, "tool_calls": [CALL, CALL]}, RESULT], "messages[1].tool_calls[1].id"),
        ([*ASK, {**ASSISTANT, "tool_calls": [{**CALL, "id": ""}]}, RESULT], "messages[1].tool_calls[0].id"),
        (
            [*ASK, {**ASSISTANT, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}, RESULT],
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            [*ASK, {**ASSISTANT, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[]"}}]}, RESULT],
            "messages[1].tool_calls[0].function.arguments",
        ),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], None),
        ([*ASK, {**RESULT, "role": "function"}], None),
        ([*ASK, ASSISTANT, {"role": "tool", "content": "x"}], None),
        ([*ASK, {"role": "assistant", "tool_calls": [{"id": "abcDEF123", "type": "function"}]}], None),
        ([ASSISTANT, RESULT], None),
        ([*ASK, ASSISTANT, RESULT, {"role": "system", "content": "x"}, RESULT], None),
    ],
)
@pytest.mark.parametrize("tools", [openai.NOT_GIVEN, TOOLS], ids=["without", "with"])
def test_sequences_that_are_none(client, messages, param, tools):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, messages, tools=tools)
    if param is not None:
        assert error.value.param == param


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": TOOLS, "tool_choice": named("get_wether")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": TOOLS, "tool_choice": "always"}, None),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/nowhere"}}}]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    CLOCK,
                    {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}},
                ],
                "tool_choice": "required",
            },
            "tools[1].function.parameters",
        ),
        (
            {"tools": TOOLS, "extra_body": {"structured_outputs": {"grammar": 'start: "a"'}}},
            "structured_outputs.grammar",
        ),
        ({"tools": TOOLS, "extra_body": {"ignore_eos": True}, "tool_choice": "required"}, "ignore_eos"),
    ],
)
def test_tools_that_cannot_be_honoured(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **options)
    if param is not None:
        assert error.value.param == param


def test_the_native_layout_too():
    """Mistral's own tokenizer, where mistral-common writes the prompt."""
    with (
        serving(pixtral.load(layout="mistral")) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        first = ask(client, tools=TOOLS, tool_choice=named("get_weather")).choices[0].message
        check_call(first.tool_calls[0])
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
        assert ask(client, [*ASK, first, result], tools=TOOLS).choices[0].message.content
        for messages in ([*ASK, result], [*ASK, first], [*ASK, first, result, result]):
            with pytest.raises(openai.BadRequestError):
                ask(client, messages, tools=TOOLS)
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["да", "нет"]}}}
        assert json.loads(ask(client, response_format=form).choices[0].message.content) in ("да", "нет")
