"""Tool calls read from tokens: the same at every split, whole characters only, broken ones as words."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Letters

from pixtral.structured.tool_parser import AnswerParser, Broken, CallScanner, new_call_id

CALLS, END = 9, 2


class Bytes(Letters):
    """A token for each byte, moved up to leave room for control tokens."""

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id - 32]) if token_id >= 32 else None


def tokens(text: str) -> list[int]:
    return [byte + 32 for byte in text.encode()]


def read(pieces: list[list[int]], **options):
    """(content, [[id, name, arguments]]), every delta checked on the way."""
    numbers = iter(range(100, 1000))
    parser = AnswerParser(Bytes(), CALLS, ends=(END,), make_id=lambda: f"call{next(numbers)}", **options)
    content, calls = "", []
    for delta in [*map(parser.push, pieces), parser.finish()]:
        content += delta.content
        for call in delta.calls:
            assert (call.id is None) == (call.name is None) == (call.index < len(calls))
            if call.name is not None:
                assert call.index == len(calls)
                calls.append([call.id, call.name, ""])
            calls[call.index][2] += call.arguments
            call.arguments.encode()
    return content, calls


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    places = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(places)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CALL = st.tuples(
    st.text(min_size=1),
    st.dictionaries(st.text(), VALUES, max_size=3),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.sampled_from([None, 1]),
)


def written(name, arguments, kind, ascii_only, indent) -> str:
    """The call as a model may write it."""
    value = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    entries = [f'"name": {json.dumps(name, ensure_ascii=ascii_only)}', f'"arguments": {value}']
    if kind == 1:
        entries.reverse()
    if kind == 2:
        entries.insert(1, '"id": "zzzzzzzzz", "more": [1, {"a": "}"}], "n": 12')
    return "{" + ", ".join(entries) + "}"


@given(st.text(), st.lists(CALL, min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=12))
def test_every_split_gives_the_same(words, given_calls, cuts):
    text = "[" + ", ".join(written(*call) for call in given_calls) + "]"
    ids = [*tokens(words), CALLS, *tokens(text), END]
    content, calls = read(split(ids, cuts))
    assert content == words
    assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [(c[0], c[1]) for c in given_calls]
    assert [call[0] for call in calls] == [f"call{100 + n}" for n in range(len(calls))]
    assert (content, calls) == read([ids]) == read([[token] for token in ids])


@given(st.text(), st.lists(CALL, min_size=1, max_size=2), st.integers(0, 10_000))
def test_cut_short_anywhere_nothing_false_comes(words, given_calls, cut):
    text = "[" + ", ".join(written(*call) for call in given_calls) + "]"
    ids = [*tokens(words), CALLS, *tokens(text)]
    ids = ids[: cut % len(ids)]
    content, calls = read([[token] for token in ids])
    assert words.startswith(content.rstrip("\ufffd"))
    whole = read([[*tokens(words), CALLS, *tokens(text)]])[1]
    for call, right in zip(calls, whole, strict=False):
        assert right[:2] == call[:2] and right[2].startswith(call[2].rstrip("\ufffd"))


def test_arguments_come_as_they_are_written():
    parser = AnswerParser(Bytes(), CALLS)
    parser.push([CALLS, *tokens('[{"name": "f", "arguments": {"text": "')])
    assert [delta.arguments for delta in parser.push(tokens("abc")).calls] == ["abc"]
    assert parser.push(tokens("é")[:1]).calls == ()
    assert [delta.arguments for delta in parser.push(tokens("é")[1:]).calls] == ["é"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        " hello",
        '{"name": "f"}',
        "[1]",
        '[{"arguments": {}}]',
        '[{"name": 3}]',
        "[[",
        '[{"arguments": [1], "name": "f"}]',
        '[{"arguments": "no object", "name": "f"}]',
        '[{"name": "\\x"}]',
    ],
)
def test_what_is_no_call_is_words(text):
    content, calls = read([[*tokens("so "), CALLS, *tokens(text), END]])
    assert calls == []
    assert content == ("so " if text in ("", "[]") else "so " + text)


def test_calls_that_break_off_keep_what_came():
    content, calls = read([[CALLS, *tokens('[{"name": "f", "arguments": {"a": 1}}, oops')]])
    assert content == "" and calls == [["call100", "f", '{"a": 1}']]


def test_a_call_that_has_begun_stays():
    assert read([[CALLS, *tokens('[{"name": "f" "x"')]]) == ("", [["call100", "f", ""]])


def test_no_arguments_are_an_empty_object():
    assert read([[CALLS, *tokens('[{"name": "f"}]')]])[1] == [["call100", "f", "{}"]]


def test_arguments_in_a_string():
    text = json.dumps([{"arguments": json.dumps({"a": "б"}), "name": "f"}])
    assert read([[CALLS, *tokens(text)]])[1] == [["call100", "f", json.dumps({"a": "б"})]]


@given(st.lists(st.integers(0, 100), max_size=5))
def test_words_stop_before_a_stop_string(cuts):
    assert read(split(tokens("one two three"), cuts), stop=("two", "wo"))[0] == "one "
    assert read(split(tokens("one tw"), cuts), stop=("two",))[0] == "one tw"


def test_end_tokens_are_no_words():
    assert read([[*tokens("hi"), END]])[0] == "hi"
    parser = AnswerParser(Bytes(), CALLS, ends=tokens("!"))
    assert parser.push(tokens("hi!")).content == "hi"


def test_scanner_names_what_is_wrong():
    with pytest.raises(Broken, match="'x' came where ARRAY was expected"):
        CallScanner().push("x")
    with pytest.raises(Broken, match="END"):
        CallScanner().push("[] 1")


def test_names_of_calls():
    names = {new_call_id() for _ in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 9 and name.isascii() and name.isalnum() for name in names)
