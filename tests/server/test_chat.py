"""/v1/chat/completions as the openai package uses it."""

from __future__ import annotations

import base64

import openai
import pytest

from pixtral.assets import demo_picture_path

PICTURE = "data:image/png;base64," + base64.b64encode(demo_picture_path().read_bytes()).decode()
QUESTION = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": PICTURE}},
            {"type": "text", "text": "Describe the picture."},
        ],
    }
]


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def expected(tiny):
    return tiny.chat("Describe the picture.", demo_picture_path(), max_new_tokens=40)


def test_an_answer_about_a_picture(client, expected):
    answer = client.chat.completions.create(
        model="pixtral-tiny", messages=QUESTION, temperature=0, max_completion_tokens=40
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.image_tokens == expected.usage.image_tokens
    assert answer.id.startswith("chatcmpl-")


def test_a_stream(client, expected):
    stream = client.chat.completions.create(
        model="pixtral-tiny", messages=QUESTION, temperature=0, max_tokens=40, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == expected.finish_reason
    assert [c.usage.completion_tokens for c in chunks if c.usage] == [expected.usage.completion_tokens]
