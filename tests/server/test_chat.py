"""/v1/chat/completions as the openai package uses it."""

from __future__ import annotations

import asyncio
import math
import time

import openai
import pytest
from server_images import asking

from pixtral.assets import demo_image_path

MODEL = "pixtral-tiny"


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client):
    def ask(text="Describe the picture.", **options):
        options = {"temperature": 0, "max_completion_tokens": 40, **options}
        return client.chat.completions.create(model=MODEL, messages=asking(text), **options)

    return ask


@pytest.fixture(scope="module")
def expected(tiny):
    return tiny.chat("Describe the picture.", demo_image_path(), max_new_tokens=40)


def test_an_answer_about_an_image(ask, expected):
    answer = ask()
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.image_tokens == expected.usage.image_tokens
    assert answer.id.startswith("chatcmpl-")


def test_a_stream(ask, expected):
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == expected.finish_reason
    assert [c.usage.completion_tokens for c in chunks if c.usage] == [expected.usage.completion_tokens]
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_usage_unless_it_is_asked_for(ask):
    assert all(chunk.usage is None and chunk.choices for chunk in ask(stream=True))


def test_the_second_time_most_of_the_prompt_is_cached(ask):
    ask()
    usage = ask().usage
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens - 32


def test_many_at_once_with_the_asynchronous_client(live, tiny):
    questions = ["Describe the picture.", "How many shapes are there?", "What colour is the circle?"] * 4

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=MODEL, messages=asking(text), temperature=0, max_tokens=20)
                    for text in questions
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    alone = {text: tiny.chat(text, demo_image_path(), max_new_tokens=20).text for text in set(questions)}
    assert asyncio.run(all_of_them()) == [alone[text] for text in questions]


def test_several_choices_of_one_seed(ask):
    options = {"n": 3, "seed": 7, "temperature": 2, "max_completion_tokens": 20, "extra_body": {"ignore_eos": True}}
    whole = ask(**options)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert [choice.message.content for choice in ask(**options).choices] == texts
    streamed = ["", "", ""]
    for chunk in ask(**options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert whole.usage.completion_tokens == 60


def test_a_prompt_of_several_choices_counts_once(client):
    messages = [{"role": "user", "content": "Nobody has asked this before: how many are 81 and 18?"}]
    usage = client.chat.completions.create(model=MODEL, messages=messages, n=3, max_tokens=4).usage
    assert usage.prompt_tokens_details.cached_tokens == 0, "the other choices do not count as having found it"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4).usage
    assert again.prompt_tokens == usage.prompt_tokens
    assert again.prompt_tokens_details.cached_tokens > 0


def test_log_probabilities(ask):
    answer = ask(logprobs=True, top_logprobs=3).choices[0]
    content = answer.logprobs.content
    text = b"".join(bytes(one.bytes) for one in content if one.bytes is not None).decode()
    assert text == answer.message.content
    for one in content:
        assert one.logprob <= 0 and len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token, "the likeliest token was taken"
        assert sum(math.exp(other.logprob) for other in one.top_logprobs) <= 1 + 1e-4
    streamed = [
        one
        for chunk in ask(logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in streamed] == [one.token for one in content]


def test_a_stop_string(ask, expected):
    word = expected.text.split()[2]
    answer = ask(stop=[word, "never"]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (expected.text.partition(word)[0], "stop")


def test_a_forbidden_token_does_not_come(ask):
    first = ask(logprobs=True).choices[0].logprobs.content[0]
    banned = {str(token): -100 for token in range(640)}
    del banned["2"]
    assert ask(logit_bias=banned).choices[0].message.content == "", "only the end was left"
    assert first.bytes


def test_limits_of_length(ask):
    assert ask(max_completion_tokens=3).choices[0].finish_reason == "length"
    forced = ask(extra_body={"ignore_eos": True}, max_completion_tokens=50)
    assert forced.usage.completion_tokens == 50
    at_least = ask(extra_body={"min_tokens": 45}, max_completion_tokens=50)
    assert at_least.usage.completion_tokens >= 45


def test_an_answer_that_has_begun(client, expected):
    begun = " ".join(expected.text.split()[:3])
    answer = client.chat.completions.create(
        model=MODEL, messages=[*asking(), {"role": "assistant", "content": begun}], temperature=0, max_tokens=20
    )
    assert answer.choices[0].message.content


def test_harmless_fields_change_nothing(ask, expected):
    answer = ask(
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        extra_body={"audio": None, "modalities": ["text"]},
    )
    assert answer.choices[0].message.content == expected.text


def test_a_client_that_leaves_ends_its_request(live, ask):
    stream = ask(stream=True, max_completion_tokens=10_000, extra_body={"ignore_eos": True})
    next(iter(stream))
    before = live.state.engine.stats().finished.get("abort", 0)
    stream.close()
    deadline = time.monotonic() + 60
    while live.state.active and time.monotonic() < deadline:
        time.sleep(0.01)
    stats = live.state.engine.stats()
    assert (live.state.active, stats.num_running, stats.finished["abort"]) == (0, 0, before + 1)


def test_a_client_that_does_not_wait_for_a_whole_answer(live, client):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(
            model=MODEL, messages=asking(), max_tokens=14_000, extra_body={"ignore_eos": True}
        )
    deadline = time.monotonic() + 60
    while (live.state.active or live.state.engine.stats().num_running) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (live.state.active, live.state.engine.stats().num_running) == (0, 0)
