"""What is refused: with OpenAI's body, the place of the fault, and never a 422 or a 500."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from server_images import IMAGE, asking

from pixtral.server.protocol import REFUSED

HELLO = [{"role": "user", "content": "Hello"}]
BAD_DETAIL = {"type": "image_url", "image_url": {"url": IMAGE, "detail": "enormous"}}


@pytest.fixture(scope="module")
def http(live):
    with httpx.Client(base_url=live.url) as http:
        yield http


@pytest.fixture
def refused(http):
    """The error object of a chat that is refused."""

    def refused(status=400, **fields):
        answer = http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, **fields})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error

    return refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"640": 1}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [BAD_DETAIL]}]}, "messages[0].content[0].image_url.detail"),
        ({"messages": asking(url="file:///etc/passwd")}, "messages[0].content[0].image_url.url"),
        ({"messages": asking(url="data:image/png;base64,AAAA")}, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "assistant"}]}, "messages[0]"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, None),
    ],
)
def test_the_place_of_the_fault(refused, fields, param):
    assert refused(**fields)["param"] == param


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_known_fields_are_refused_with_a_reason(refused, name):
    error = refused(**{name: {}})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert REFUSED[name] in error["message"]


def test_known_fields_may_be_null(http):
    nothing = dict.fromkeys(REFUSED)
    assert http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, **nothing}).status_code == 200


def test_unknown_fields_are_refused(refused):
    error = refused(temprature=1)
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"nul",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
    ],
)
def test_bodies_that_are_no_request(http, content):
    answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_not_declared(http):
    data = json.dumps({"messages": HELLO})
    answer = http.post("/v1/chat/completions", content=data, headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_another_model(live):
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_no_such_place(http):
    missing, wrong = http.get("/v2/chat"), http.get("/v1/chat/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 16_384}, {"messages": [{"role": "user", "content": "red " * 17_000}]}]
)
def test_more_than_the_context(refused, fields):
    error = refused(**fields)
    assert error["code"] == "context_length_exceeded"
    assert "16384" in error["message"]


def test_too_many_images(refused):
    parts = [{"type": "image_url", "image_url": {"url": IMAGE}}] * 17
    error = refused(messages=[{"role": "user", "content": parts}])
    assert error["code"] == "too_many_images"


def test_a_request_id_comes_back(http):
    given = http.get("/v1/models", headers={"x-request-id": "mine-1"})
    strange = http.get("/v1/models", headers={"x-request-id": "not mine"})
    refused = http.post("/v1/chat/completions", json={})
    assert given.headers["x-request-id"] == "mine-1"
    assert strange.headers["x-request-id"].startswith("req_")
    assert refused.status_code == 400 and refused.headers["x-request-id"].startswith("req_")
