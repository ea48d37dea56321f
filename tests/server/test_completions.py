"""/v1/completions, /v1/models, /tokenize and /detokenize."""

from __future__ import annotations

import httpx
import openai
import pytest
from server_images import asking

MODEL = "pixtral-tiny"


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(live):
    with httpx.Client(base_url=live.url) as http:
        yield http


@pytest.fixture
def prompt(http):
    """The ids of a conversation."""
    messages = [{"role": "user", "content": "How many shapes are there?"}]
    return http.post("/tokenize", json={"messages": messages}).json()["tokens"]


def test_a_prompt_of_ids_is_a_chat(client, prompt):
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "How many shapes are there?"}], temperature=0, max_tokens=12
    )
    answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=12)
    assert answer.choices[0].text == chat.choices[0].message.content
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.object == "text_completion"


def test_sixteen_tokens_if_nothing_is_said(client):
    answer = client.completions.create(model=MODEL, prompt="A red", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_several_prompts_with_several_choices(client):
    options = {"temperature": 1.2, "seed": 3, "max_tokens": 6}
    answer = client.completions.create(model=MODEL, prompt=["A red", "The blue circle"], n=2, **options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = client.completions.create(model=MODEL, prompt="The blue circle", n=2, **options)
    assert [c.text for c in answer.choices[2:]] == [c.text for c in alone.choices]
    texts = ["", "", "", ""]
    last = None
    for chunk in client.completions.create(
        model=MODEL,
        prompt=["A red", "The blue circle"],
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        **options,
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        last = chunk.usage
    assert texts == [choice.text for choice in answer.choices]
    assert last.model_dump() == answer.usage.model_dump() | {
        "prompt_tokens_details": last.prompt_tokens_details.model_dump()
    }


def test_log_probabilities(client):
    options = {"temperature": 0, "max_tokens": 8, "logprobs": 2, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(model=MODEL, prompt="A red", **options).choices[0]
    logprobs = answer.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 8
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert answer.text[offset : offset + len(token)] == token or token.startswith("<")
    chunks = client.completions.create(model=MODEL, prompt="A red", stream=True, **options)
    offsets = [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == logprobs.text_offset


def test_a_choice_of_words(client):
    answer = client.completions.create(
        model=MODEL, prompt="A", max_tokens=20, extra_body={"structured_outputs": {"choice": ["red", "green"]}}
    )
    assert answer.choices[0].text in ("red", "green")


def test_an_image_has_no_place_in_a_raw_prompt(client):
    with pytest.raises(openai.BadRequestError, match=r"\[IMG\]"):
        client.completions.create(model=MODEL, prompt="What is this? [IMG]")


def test_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve(MODEL).model_dump() == model.model_dump()
    assert model.max_model_len == 16384
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_tokens_and_back(http):
    made = http.post("/tokenize", json={"prompt": "A red circle", "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    back = http.post("/detokenize", json={"tokens": made["tokens"], "skip_special_tokens": True}).json()
    assert back == {"prompt": "A red circle"}
    assert http.post("/tokenize", json={"prompt": "[INST]A[/INST]"}).json()["count"] == 3, (
        "control tokens count as such"
    )


def test_the_tokens_of_an_image(http, client):
    made = http.post("/tokenize", json={"messages": asking()}).json()
    usage = client.chat.completions.create(model=MODEL, messages=asking(), max_tokens=1).usage
    assert (made["count"], made["image_tokens"]) == (usage.prompt_tokens, usage.prompt_tokens_details.image_tokens)


@pytest.mark.parametrize(
    "body", [{}, {"prompt": "a", "messages": asking()}, {"messages": asking(), "add_special_tokens": True}]
)
def test_tokenize_wants_one_of_them(http, body):
    assert http.post("/tokenize", json=body).status_code == 400


def test_ids_beyond_the_vocabulary(http, client):
    assert http.post("/detokenize", json={"tokens": [640]}).json()["error"]["param"] == "tokens"
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model=MODEL, prompt=[1, 640])
