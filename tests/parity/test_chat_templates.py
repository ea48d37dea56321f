"""Chat templates rendered by us and by transformers: the same prompts, ids and refusals."""

from __future__ import annotations

import functools
from typing import Any, Literal

import pytest
from tokens import LARGE, TEKKEN, TEXTS, random_conversation, small_hf

from pixtral.errors import PromptError
from pixtral.messages import normalize
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.templates import ChatTemplate
from pixtral.text.tools import function_schema

transformers = pytest.importorskip("transformers")
templates = pytest.importorskip("transformers.utils.chat_template_utils")

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module", params=[TEKKEN, LARGE], ids=["12B", "Large"])
def source(request: pytest.FixtureRequest) -> str:
    """The template that mistral-common writes for a model."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

    text: str = convert_tokenizer_to_chat_template(str(request.param))
    return text


@pytest.fixture(scope="module")
def fast() -> tuple[HuggingFaceTokenizer, Any]:
    """Our tokenizer and transformers' over the same files."""
    return HuggingFaceTokenizer.from_pretrained(small_hf()), transformers.AutoTokenizer.from_pretrained(small_hf())


def theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered, _ = templates.render_jinja_template([messages], chat_template=source, **{**VARIABLES, **options})
    return str(rendered[0])


def ours(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return compiled(source).render(normalize(messages), variables=VARIABLES, **options).text


compiled = functools.cache(ChatTemplate)


def test_generated_conversations_render_alike(source: str) -> None:
    for seed in range(60):
        chat = random_conversation(seed)
        options = {"tools": chat["tools"], "add_generation_prompt": bool(seed % 2)}
        assert ours(source, chat["messages"], **options) == theirs(source, chat["messages"], **options)


def test_the_last_message_is_continued_alike(source: str) -> None:
    for text in ("Once upon", "Once upon ", "a\n", "  x"):
        for content in (text, [{"type": "text", "text": text}]):
            chat = [{"role": "user", "content": "go"}, {"role": "assistant", "content": content}]
            found = ours(source, chat, continue_final_message=True)
            assert found == theirs(source, chat, continue_final_message=True)
            assert found.endswith(text)


def test_ids_equal_transformers(fast: Any) -> None:
    """With and without control tokens in the messages, which transformers treats as text when it is told to."""
    mine, reference = fast
    for seed in range(60):
        chat = random_conversation(seed)
        expected = reference.apply_chat_template(chat["messages"], tools=chat["tools"], sanitize_control_tokens=True)
        found = mine.apply_chat_template(chat["messages"], tools=chat["tools"])
        assert mine.decode(found["input_ids"]) == reference.decode(expected["input_ids"])
        plain = not any(token in str(chat) for token in ("[IM", "</s>", "<s>"))
        if plain:  # theirs encodes the control tokens apart from the text around them, ours the text as a whole
            assert found["input_ids"] == expected["input_ids"]
            assert dict(found) == dict(reference.apply_chat_template(chat["messages"], tools=chat["tools"]))


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_ask_for_the_slow_path_equal_the_fast_one(fast: Any, text: str) -> None:
    """Pieces between control tokens, encoded one by one, give what `tokenizers` gives for the whole."""
    mine, _ = fast
    for around in ("{}", "<s>[INST]{}[/INST]", "a[IMG]{}", "{}</s>b", "[IMG][IMG]{} [IMG_END]\n"):
        whole = around.format(text)
        assert mine.pieces_to_ids(mine.control_tokens.split(whole)) == mine.text_to_ids(whole)


def test_refusals_of_the_template(source: str) -> None:
    refused: list[list[dict[str, Any]]] = [
        [{"role": "assistant", "content": "first"}],
        [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "tool_call_id": "123456789"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"id": "short", "function": {"name": "f", "arguments": "{}"}}]},
        ],
    ]
    for chat in refused:
        with pytest.raises(Exception):  # noqa: B017  jinja2's TemplateError, whose module transformers imports lazily
            theirs(source, chat)
        with pytest.raises(PromptError, match="chat template"):
            ours(source, chat)


HELPERS = [
    "{{ messages | tojson }}",
    "{{ messages | tojson(indent=1) }}|{{ {'b': 1, 'a': 'é<>&'} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}\n{% endfor %}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc",
    "{% generation %}x{{ messages[0]['content'] }}{% endgeneration %}y",
    "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ dict(k=1)['k'] }}",
    "{{ strftime_now('%Y') }}{{ bos_token }}{{ documents[0].title }}{{ undefined_name }}",
    "{% macro m(x) -%} [{{ x }}] {%- endmacro %}{{ m(messages | length) }}{{ [1, 2] | map('string') | join('-') }}",
]


@pytest.mark.parametrize("source_text", HELPERS)
def test_helpers_of_templates(source_text: str) -> None:
    chat = [{"role": "user", "content": "Grüße [IMG] <b>"}, {"role": "assistant", "content": "x"}]
    documents = [{"title": "T", "text": "…"}]
    assert ours(source_text, chat, documents=documents) == theirs(source_text, chat, documents=documents)


def weather(
    city: str,
    days: int = 1,
    unit: Literal["C", "F"] = "C",
    tags: list[str] | None = None,
    extra: dict[str, float] = {},  # noqa: B006
) -> str | int:
    """Tell the weather.

    Args:
        city: Where, a name
            or a code.
        days: How many. (choices: [1, 2])
        unit: Of temperature.
        tags: Any.
        extra: More.

    Returns:
        A text.
    """
    return city


def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize("function", [weather, nothing])
def test_functions_become_the_same_schemas(function: Any) -> None:
    assert function_schema(function) == templates.get_json_schema(function)
