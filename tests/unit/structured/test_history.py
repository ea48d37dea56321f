"""Calls and results in a conversation: what fits together passes, all else is refused with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral.assets import tiny_path
from pixtral.errors import PixtralError, StructureError
from pixtral.messages import normalize
from pixtral.processing import AutoProcessor
from pixtral.structured.tools import check_history, prompt_id

USER = {"role": "user", "content": "hi"}


def call(name="abcDEF123", arguments="{}", function="f"):
    return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}


def calls(*entries, **more):
    return {"role": "assistant", "tool_calls": list(entries), **more}


def result(name="abcDEF123", content="done"):
    return {"role": "tool", "tool_call_id": name, "content": content}


def check(*messages):
    return check_history(normalize(list(messages)))


def test_what_fits_passes():
    check(USER)
    check(USER, {"role": "assistant", "content": "hello"}, USER)
    done = check(USER, calls(call("aaaaaaaaa"), call("bbbbbbbbb")), result("bbbbbbbbb"), result("aaaaaaaaa"), USER)
    assert [m.role for m in done] == ["user", "assistant", "tool", "tool", "user"]
    again = check(USER, calls(call()), result(), calls(call()), result())  # a name may come again in a later turn
    assert len(again) == 5


def test_names_of_other_servers():
    long = "call_JlmVb2kYw5gYpQ0"
    done = check(USER, calls(call(long)), result(long))
    assert done[1].tool_calls[0].id == done[2].tool_call_id == prompt_id(long)
    assert done[2].tool_call_id != long and len(done[2].tool_call_id) == 9


@given(st.text(), st.text())
def test_prompt_ids(first, second):
    one, other = prompt_id(first), prompt_id(second)
    assert len(one) == 9 and one.isascii() and one.isalnum() and prompt_id(one) == one
    assert (one == other) == (first == second) or one in (first, second)


def test_words_beside_calls_are_left_out():
    done = check(USER, calls(call(), content="let me see"), result())
    assert done[1].text == "" and len(done[1].tool_calls) == 1


@pytest.mark.parametrize("arguments", ["", "  ", '{"a":1}', {"a": "é"}])
def test_arguments_become_json(arguments):
    done = check(USER, calls(call(arguments=arguments)), result())
    assert isinstance(json.loads(done[1].tool_calls[0].arguments), dict)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, result()], "messages[1].tool_call_id"),
        ([USER, calls(call()), result("zzzzzzzzz")], "messages[2].tool_call_id"),
        ([USER, calls(call()), result(), result()], "messages[3].tool_call_id"),
        ([USER, calls(call()), USER], "messages[2].role"),
        ([USER, calls(call()), calls(call("bbbbbbbbb"))], "messages[2].role"),
        ([USER, calls(call())], "messages"),
        ([USER, calls(call("a" * 9), call("b" * 9)), result("a" * 9)], "messages"),
        ([USER, calls(call(), call()), result()], "messages[1].tool_calls[1].id"),
        ([USER, calls(call(None)), result()], "messages[1].tool_calls[0].id"),
        ([USER, calls(call(function="")), result()], "messages[1].tool_calls[0].function.name"),
        ([USER, calls(call(arguments="{")), result()], "messages[1].tool_calls[0].function.arguments"),
        ([USER, calls(call(arguments="3")), result()], "messages[1].tool_calls[0].function.arguments"),
        ([USER, calls(call(arguments="[" * 100_000)), result()], "messages[1].tool_calls[0].function.arguments"),
        ([USER, calls(call()), {"role": "tool", "content": "x"}], "messages[2]"),
        ([USER, calls(call()), result(content=[{"type": "image"}])], "messages[2]"),
    ],
)
def test_what_does_not_fit_is_refused(messages, param):
    with pytest.raises(StructureError) as error:
        check(*messages)
    assert error.value.param == param


MESSAGES = st.one_of(
    st.just(USER),
    st.just({"role": "system", "content": "be kind"}),
    st.just({"role": "assistant", "content": "yes"}),
    st.builds(result, st.sampled_from(["a" * 9, "b" * 9, "call_c"])),
    st.builds(
        lambda names, words: calls(*map(call, names), **({"content": words} if words else {})),
        st.lists(st.sampled_from(["a" * 9, "b" * 9, "call_c"]), min_size=1, max_size=2),
        st.sampled_from(["", "words"]),
    ),
)


@pytest.fixture(scope="module", params=["hf", "mistral"])
def processor(request):
    return AutoProcessor.from_pretrained(tiny_path(), tokenizer_mode=request.param)


@pytest.fixture(scope="module")
def check_any(processor):
    @given(st.lists(MESSAGES, min_size=1, max_size=6))
    def check_messages(messages):
        try:
            done = check(*messages)
            goes_on = done[-1].role == "assistant"
            processor.apply_chat_template(
                done, add_generation_prompt=not goes_on, continue_final_message=goes_on, tokenize=True, return_dict=True
            )
        except PixtralError:
            pass

    return check_messages


def test_any_sequence_is_a_prompt_or_a_refusal(check_any):
    check_any()


def test_the_prompt_has_calls_and_results(processor):
    messages = check(USER, calls(call(arguments='{"x": "é"}')), result(content="42 degrees"))
    batch = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    (text,) = processor.tokenizer.batch_decode(batch["input_ids"])
    assert text == (
        '<s>[INST]hi[/INST][TOOL_CALLS][{"name": "f", "arguments": {"x": "é"}, "id": "abcDEF123"}]</s>'
        '[TOOL_RESULTS]{"content": "42 degrees", "call_id": "abcDEF123"}[/TOOL_RESULTS]'
    )
