"""Requests made from the OpenAPI document by schemathesis, right and wrong ones: never a 5xx, always OpenAI's errors.

A few dozen in the default run; PIXTRAL_FUZZ=2000 in the environment sends that many bodies.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from server.conftest import Live, serving
from server.image_files import data_uri
from server.image_files import encoded as encoded_image

schemathesis = pytest.importorskip("schemathesis")

BODIES = int(os.environ.get("PIXTRAL_FUZZ", "80"))
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")
FUZZ = hypothesis.settings(
    max_examples=max(BODIES // (2 * len(POSTS)), 2),
    deadline=None,
    derandomize=BODIES < 1000,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate],
)
IMAGE = data_uri(encoded_image(8, 8))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "look", "description": "Look.", "parameters": SCHEMA}
GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Hello."},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "content": "nothing", "tool_call_id": "abcdefghi"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "auto",
            "max_tokens": 2,
            "stream_options": {"include_usage": True},
        },
        {
            "messages": [{"role": "user", "content": "Hello."}],
            "max_tokens": 4,
            "temperature": 0.5,
            "seed": 1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}},
            "stop": ["x"],
            "logprobs": True,
            "top_logprobs": 2,
            "logit_bias": {"40": 1.0},
            "metadata": {"a": "b"},
        },
        {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4, "structured_outputs": {"regex": "[ab]+"}},
    ],
    "/v1/completions": [{"prompt": ["Hello.", "You."], "max_tokens": 2, "stop": ["x"], "logprobs": 1}],
    "/v1/responses": [
        {"input": "Hello.", "max_output_tokens": 16},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello."}]}], "max_output_tokens": 16},
    ],
    "/tokenize": [{"prompt": "Hello."}, {"messages": [{"role": "user", "content": "Hello."}]}],
    "/detokenize": [{"tokens": [40, 41, 42]}],
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20).map(str),
    st.sampled_from(
        [
            "",
            "\0",
            "\ud800",
            "\u202e",
            "NaN",
            "1e400",
            -1,
            0,
            2**31,
            2**63,
            -(2**63) - 1,
            10**30,
            0.0,
            -0.0,
            1e308,
            "file:///etc/passwd",
            "data:image/png;base64,",
            "http://169.254.169.254/",
            "[IMG]",
            "[TOOL_CALLS]",
            "</s>",
            "(",
            "(a+)+$",
            ".*",
            "a{1000000}",
            "start: start",
            "{{7*7}}",
            "%s%n",
            "../../etc/passwd",
        ]
    ),
)
ANY = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Live]:
    with serving(tiny, max_model_len=512, request_timeout=20.0, max_body_mb=1.0) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
        if server.state.engine._failure is not None:
            raise AssertionError("the engine has stopped") from server.state.engine._failure
        assert client.get("/ready").status_code == 200
        stats = server.state.engine.stats()
        assert stats.num_running == stats.num_waiting == 0
        assert stats.num_free_blocks == stats.num_blocks


@pytest.fixture(scope="module")
def seen() -> Iterator[Counter[int]]:
    """Statuses; printed with -s."""
    statuses: Counter[int] = Counter()
    yield statuses
    print("\nbodies:", sum(statuses.values()), "statuses:", dict(statuses))


@pytest.fixture(scope="module")
def operations(client: httpx.Client) -> Any:
    """Of the server's own document, by path and method."""
    document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    return {(each.ok().path, each.ok().method.upper()): each.ok() for each in schema.get_all_operations()}


def check(answer: httpx.Response, what: object) -> None:
    """No 5xx; a 4xx has OpenAI's body and says something; streams that began end properly."""
    shown = repr(what)[:1500]
    assert answer.status_code < 500, f"{answer.status_code} {answer.text[:500]} for {shown}"
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, shown
        assert len(error["message"]) > 10 and error["type"] == "invalid_request_error", shown
        assert answer.headers["x-request-id"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        for line in answer.text.splitlines():
            assert '"server_error"' not in line, f"{line[:500]} for {shown}"
        assert answer.text.endswith("\n\n"), shown
    else:
        answer.json()


def shortened(body: Any) -> Any:
    """Valid bodies may ask for long answers, which prove nothing more here."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(name), int) and body[name] > 16:
                body[name] = 16
        if isinstance(body.get("n"), int) and body["n"] > 4:
            body["n"] = 4
    return body


def encoded(body: Any) -> bytes:
    """JSON, NaN and lone surrogates included."""
    return json.dumps(body, default=str).encode("utf-8", "surrogatepass")


def send(client: httpx.Client, path: str, body: bytes, seen: Counter[int]) -> int:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    seen[answer.status_code] += 1
    check(answer, body)
    return answer.status_code


@pytest.mark.parametrize("path", POSTS)
def test_bodies_by_the_document(operations: Any, client: httpx.Client, path: str, seen: Counter[int]) -> None:
    """As schemathesis makes them: what the document allows, and what it does not."""
    operation = operations[path, "POST"]
    modes = schemathesis.GenerationMode
    made = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)))

    @FUZZ
    @hypothesis.given(case=made)
    def run(case: Any) -> None:
        body = case.body if isinstance(case.body, (dict, list, str, int, float, bool, type(None))) else None
        send(client, path, encoded(shortened(body)), seen)

    run()


@pytest.mark.parametrize("path", POSTS)
def test_good_bodies_with_one_thing_wrong(client: httpx.Client, path: str, seen: Counter[int]) -> None:
    """One place of a body that works, or a new field, gets any value: so the wrong thing comes further inside."""
    document = client.get("/openapi.json").json()
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    names = sorted(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"])
    for body in GOOD[path]:
        plain = {name: each for name, each in body.items() if name != "stream_options"}
        assert send(client, path, encoded(plain), seen) == 200, plain
    chosen = st.sampled_from(GOOD[path]).flatmap(
        lambda body: st.tuples(st.just(body), st.sampled_from([*places(body), *((name,) for name in names), ("new",)]))
    )

    @hypothesis.settings(FUZZ, max_examples=3 * FUZZ.max_examples)
    @hypothesis.given(chosen=chosen, value=ANY, stream=st.booleans())
    def run(chosen: tuple[dict[str, Any], tuple[Any, ...]], value: Any, stream: bool) -> None:
        body = copy.deepcopy(chosen[0])
        inner: Any = body
        for step in chosen[1][:-1]:
            inner = inner[step]
        inner[chosen[1][-1]] = value
        if stream and path.startswith("/v1"):
            body.setdefault("stream", True)
        send(client, path, encoded(shortened(body)), seen)

    run()


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside a body."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for step, each in inside for place in ((*before, step), *places(each, (*before, step)))]


@FUZZ
@hypothesis.given(body=st.binary(max_size=200), path=st.sampled_from(POSTS))
def test_bytes(client: httpx.Client, seen: Counter[int], body: bytes, path: str) -> None:
    send(client, path, body, seen)


def test_the_document_is_valid(operations: Any) -> None:
    """It describes every route that the tests above use."""
    assert {(path, "POST") for path in POSTS} <= set(operations)
