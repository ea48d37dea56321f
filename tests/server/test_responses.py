"""/v1/responses as the openai package uses it."""

from __future__ import annotations

import openai
import pydantic
import pytest
from server_images import IMAGE

from pixtral.assets import demo_image_path

TOOL = {
    "type": "function",
    "name": "count",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def question():
    parts = [{"type": "input_image", "image_url": IMAGE}, {"type": "input_text", "text": "Describe the picture."}]
    return [{"role": "user", "content": parts}]


def test_an_image(client, question, tiny):
    expected = tiny.chat("Describe the picture.", demo_image_path(), max_new_tokens=60)
    answer = client.responses.create(model="pixtral-tiny", input=question, temperature=0, max_output_tokens=60)
    assert answer.output_text == expected.text
    assert answer.status == ("completed" if expected.finish_reason == "stop" else "incomplete")
    assert answer.usage.input_tokens == expected.usage.prompt_tokens
    assert answer.usage.output_tokens == expected.usage.completion_tokens


def test_a_stream_builds_the_same_response(client, question):
    whole = client.responses.create(model="pixtral-tiny", input=question, temperature=0, max_output_tokens=60)
    with client.responses.stream(model="pixtral-tiny", input=question, temperature=0, max_output_tokens=60) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert [e.sequence_number for e in events if hasattr(e, "sequence_number")] == sorted(
        {e.sequence_number for e in events if hasattr(e, "sequence_number")}
    )
    assert events[-1].type == "response.completed"


def test_going_on_with_its_own_items(client, question):
    first = client.responses.create(model="pixtral-tiny", input=question, temperature=0, max_output_tokens=60)
    again = [*question, *(item.model_dump() for item in first.output), {"role": "user", "content": "How many?"}]
    second = client.responses.create(
        model="pixtral-tiny", input=again, instructions="Be short.", temperature=0, max_output_tokens=10
    )
    assert second.usage.input_tokens > first.usage.input_tokens


def test_cut_off(client, question):
    answer = client.responses.create(model="pixtral-tiny", input=question, temperature=0, max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_schema(client, question):
    class Count(pydantic.BaseModel):
        n: int

    answer = client.responses.parse(model="pixtral-tiny", input=question, text_format=Count, max_output_tokens=60)
    assert isinstance(answer.output_parsed, Count)


def test_a_call_and_its_result(client):
    asked = [{"role": "user", "content": "How many?"}]
    with client.responses.stream(
        model="pixtral-tiny", input=asked, tools=[TOOL], tool_choice="required", max_output_tokens=200, temperature=0
    ) as stream:
        answer = stream.get_final_response()
    call = answer.output[0]
    assert (call.type, call.name) == ("function_call", "count")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    again = client.responses.create(
        model="pixtral-tiny", input=[*asked, call.model_dump(), result], tools=[TOOL], max_output_tokens=5
    )
    assert again.status in ("completed", "incomplete")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("previous_response_id", "resp_1", "answers are not stored"),
        ("background", True, "not supported"),
        ("store", True, "answers are not stored"),
        ("reasoning", {"effort": "low"}, "no reasoning mode"),
    ],
)
def test_refused_by_name(client, field, value, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.responses.create(model="pixtral-tiny", input="Hello", extra_body={field: value})
    assert caught.value.param == field


def test_an_image_that_is_none_names_the_input(client):
    parts = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="pixtral-tiny", input=[{"role": "user", "content": parts}])
    assert caught.value.param == "input"
