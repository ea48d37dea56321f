"""Guides: exactly the tokens that a grammar lets come, the end when it is complete, and no other control token."""

from __future__ import annotations

import json
import math
import random
import re
import threading

import numpy as np
import pytest
import torch
from tokens import LARGE, TEKKEN

from pixtral.assets import tiny_path
from pixtral.engine.request import Guide
from pixtral.errors import StructureError
from pixtral.processing import AutoProcessor
from pixtral.structured import formats
from pixtral.structured.grammars import Grammars, guide_of
from pixtral.structured.guide import InString, LaterGuide, WithoutGuide, keep_only
from pixtral.structured.tool_parser import AnswerParser
from pixtral.structured.tools import read_tools
from pixtral.text.detokenizer import StreamDecoder
from pixtral.text.mistral import MistralCommonTokenizer

END, CALLS = 2, 9
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module", params=["hf", "mistral"])
def grammars(request):
    return Grammars(AutoProcessor.from_pretrained(tiny_path(), tokenizer_mode=request.param).tokenizer, [END])


@pytest.fixture(scope="module")
def one():
    return Grammars(AutoProcessor.from_pretrained(tiny_path()).tokenizer, [END])


def allowed(guide: Guide, size: int = 640) -> set[int]:
    scores = torch.arange(size, dtype=torch.float32) / size
    guide.mask(scores)
    return set(torch.nonzero(scores > -math.inf).flatten().tolist())


def say(grammars: Grammars, guide: Guide, text: str) -> None:
    for token in grammars.tokenizer.ordinary_ids(text):
        assert token in allowed(guide), (text, grammars.tokenizer.id_to_bytes(token))
        guide.advance(token)


def ends(grammars: Grammars, form: formats.Form, text: str) -> bool:
    """Whether the text may be said, and the answer may end behind it."""
    guide = grammars.compile(form)()
    say(grammars, guide, text)
    return END in allowed(guide)


def test_exactly_the_tokens_that_go_on_a_choice(grammars):
    words = ["one", "on", "тест", "te\nst"]
    form, said = formats.choice(words), b""
    guide = grammars.compile(form)()
    for token in grammars.tokenizer.ordinary_ids("тест"):
        tokens = {i: grammars.tokenizer.id_to_bytes(i) for i in range(640)}
        right = {i for i, data in tokens.items() if data and any(w.encode().startswith(said + data) for w in words)}
        assert token in allowed(guide) <= right
        assert (
            said or allowed(guide) == right
        )  # where the bytes are forced, tokens that only begin them are not offered
        guide.advance(token)
        said += tokens[token]
    assert allowed(guide) == {END}
    guide.advance(END)
    assert allowed(guide) == {END}


def test_a_full_vocabulary():
    """That of Pixtral-12B, 131,072 tokens, many of them parts of characters."""
    tokenizer = MistralCommonTokenizer(TEKKEN)
    grammars = Grammars(tokenizer, [END])
    texts = {word: {"const": word} for word in ("Ωмега", "日本語です", "👩‍👩‍👧", "naïve café")}
    for word, schema in texts.items():
        guide = grammars.compile(formats.json_schema(schema))()
        for token in tokenizer.ordinary_ids(f'"{word}"'):
            scores = torch.zeros(131_072)
            guide.mask(scores)
            assert scores[token] == 0
            guide.advance(token)
        assert allowed(guide, 131_072) == {END}
    anything = grammars.compile(formats.json_schema({"type": "string"}))()
    anything.advance(tokenizer.ordinary_ids('"')[0])
    many = allowed(anything, 131_072)
    assert len(many) > 100_000 and many.isdisjoint(tokenizer.all_special_ids)


def test_a_choice_that_begins_another(grammars):
    guide = grammars.compile(formats.choice(["on", "one"]))()
    say(grammars, guide, "on")
    assert END in allowed(guide)
    say(grammars, guide, "e")
    assert allowed(guide) == {END}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, '"Zoë, и так далее 世界 🙂 \\" \\n"'),
        ({"enum": ["é\u0001"]}, '"é\\u0001"'),
        ({"type": "object"}, '{"a": [1, {"b": null}], "é": "x"}'),
        ({"type": "array", "items": {"type": "integer"}}, "[\n    1,\n    2\n]"),
        ({"type": "number"}, "-1.5e-3"),
        ({"x-guidance": {"whitespace_pattern": "x"}, "type": "array"}, "[ 1]"),
        (
            {"type": "object", "properties": {"format": {"const": 1}, "items": {"const": 2}}},
            '{"format": 1, "items": 2}',
        ),
    ],
)
def test_json_that_may_be_said(grammars, schema, text):
    assert ends(grammars, formats.json_schema(schema), text)


@pytest.mark.parametrize(
    ("schema", "text", "next_one"),
    [
        ({"type": "object"}, "{ ", " "),  # white space is bounded
        ({"type": "object"}, "{\n" + " " * 16, " "),
        ({"type": "object"}, "{\n", "\n"),
        ({"type": "object"}, "{", "\t"),
        ({"type": "string"}, '"\\u', "d"),  # half a surrogate pair could come of it
        ({"type": "string", "maxLength": 2}, '"ab', "c"),
        ({"type": "string", "format": "email"}, '"' + "a" * 252, "a"),
        ({"type": "object", "additionalProperties": False}, "{", '"'),
        ({"type": "array", "maxItems": 1}, "[1", ","),
        ({"type": "array", "items": {"type": "integer"}}, "[1", "."),
    ],
)
def test_json_that_may_not_be_said(grammars, schema, text, next_one):
    guide = grammars.compile(formats.json_schema(schema))()
    say(grammars, guide, text)
    (token,) = grammars.tokenizer.ordinary_ids(next_one)
    assert token not in allowed(guide)
    with pytest.raises(AssertionError, match="forbidden"):
        guide.advance(token)


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        ("a/b", "a/b"),
        (r"a\/b", "a/b"),
        (r"\\/", "\\/"),
        ("a\nb", "a\nb"),
        ("a\\\nb", "a\nb"),
        ("[/]+", "//"),
        ("[а-я]+ё?", "елкиё"),
        (r"\d{2}|x", "12"),
        ("(?i)abc", "aBC"),
        (r"a\.\n", "a.\n"),
        ("日本|한국", "한국"),
    ],
)
def test_patterns(grammars, regex, text):
    assert ends(grammars, formats.pattern(regex), text)


def test_the_end_is_forced_whatever_was_done_to_its_score(one):
    guide = one.compile(formats.choice(["x"]))()
    say(one, guide, "x")
    scores = torch.zeros(640)
    scores[END] = -math.inf  # as by a minimum of tokens
    guide.mask(scores)
    assert scores.argmax() == END and scores[END] == 0


def test_a_wish_to_end_closes_what_is_open(one):
    quote, bracket, brace, letter = (one.tokenizer.ordinary_ids(text)[0] for text in ('"', "]", "}", "a"))
    guide = one.compile(formats.json_schema({"type": "array", "items": {"type": "string"}}))()

    def best() -> int:
        scores = torch.zeros(640)
        scores[letter], scores[END] = 1.0, 5.0
        guide.mask(scores)
        return int(scores.argmax())

    say(one, guide, '["x\\"')
    assert best() == quote
    say(one, guide, '"')
    assert best() == bracket
    inside = one.compile(formats.json_object())()
    say(one, inside, '{"}')
    scores = torch.zeros(640)
    scores[END] = 5.0
    inside.mask(scores)
    assert scores.argmax() == quote and scores[brace] == 0
    words = one.compile(formats.pattern('"[a-z]+"'))()  # no JSON, no wish
    say(one, words, '"a')
    scores = torch.zeros(640)
    scores[letter], scores[END] = 1.0, 5.0
    words.mask(scores)
    assert scores.argmax() == letter


def test_in_string():
    state, inside = InString(), ""
    for character in r'{"a\"": [1, "b\\"]}':
        inside += "1" if state.inside else "0"
        state.push(character.encode())
    assert inside == "001111" + "0" * 7 + "1111" + "00"


def test_control_tokens_never_come(one):
    assert allowed(one.compile(formats.lark("start: /(.|\\n)*/"))()) >= {END}
    everything = allowed(one.compile(formats.lark("start: (<[*]>)+"))())
    assert everything.isdisjoint(set(one.tokenizer.all_special_ids) - {END, CALLS})
    guide = one.compile(formats.lark('start: "a" <[10]>'))()
    say(one, guide, "a")
    with pytest.raises(StructureError, match="control token"):
        guide.mask(torch.zeros(640))


def test_scores_beyond_the_vocabulary_are_forbidden(one):
    assert allowed(one.compile(formats.choice(["a"]))(), 700) == set(one.tokenizer.ordinary_ids("a"))


@pytest.mark.parametrize("size", [3, 8, 9, 20])
def test_keep_only(size):
    bits = np.array([0b10000101, 0], np.uint8)
    scores = torch.arange(size, dtype=torch.float32)
    keep_only(scores, bits)
    assert scores.tolist() == [n if n in (0, 2, 7) else -math.inf for n in range(size)]
    scores = torch.full((3,), math.nan)
    keep_only(scores, bits)
    assert scores.isnan().all(), "broken numbers stay visible"


@pytest.mark.parametrize(
    "form", [formats.pattern(r"[^\x00-\U0010ffff]"), formats.lark("start: a\na: a"), formats.json_schema({"enum": []})]
)
def test_what_allows_no_answer(one, form):
    with pytest.raises(StructureError, match=r"no answer|Unsatisfiable.*correct it"):
        one.compile(form)


def test_a_grammar_that_becomes_too_complex(one):
    form = formats.lark("start: a a a a\na: b b b b b b b b\nb: c c c c c c c c c\nc: /x{1,1000}/{1,1000}")
    guide = one.compile(form)()
    with pytest.raises(StructureError, match="too complex") as error:
        for _ in range(9):
            say(one, guide, "x")
    assert error.value.param == "structured_outputs.grammar"


def test_a_grammar_that_takes_too_long(one):
    form = formats.lark('start: a*\na: (b | c)*\nb: "x" | "xx" | a a\nc: "x" b c | a "x" | ')
    guide = one.compile(form)()
    with pytest.raises(StructureError, match="takes too long to follow"):
        for _ in range(2000):
            say(one, guide, "x")


def test_time_that_a_step_may_take_is_not_counted(one, monkeypatch):
    clock = iter(0.004 * n for n in range(100_000))
    monkeypatch.setattr("pixtral.structured.guide.time.thread_time", lambda: next(clock))
    guide = one.compile(formats.pattern("x*"))()
    for _ in range(50):
        guide.mask(torch.zeros(640))  # 4 ms each
    clock = iter(0.05 * n for n in range(100_000))
    with pytest.raises(StructureError, match="too long"):
        for _ in range(7):
            guide.mask(torch.zeros(640))


# --- tools


def test_auto_begins_with_the_trigger(one):
    guide = guide_of(one, None, read_tools([CLOCK]))()  # type: ignore[misc]
    assert isinstance(guide, LaterGuide) and len(allowed(guide)) == 640
    say(one, guide, "some words")
    guide.advance(CALLS)
    say(one, guide, '[{"name": "clock", "arguments": {}}')
    assert END not in allowed(guide)
    say(one, guide, ', {"name":"clock","arguments":{}}]')
    assert allowed(guide) == {END}


def test_none_forbids_the_trigger(one):
    guide = guide_of(one, None, read_tools([CLOCK], "none"))()  # type: ignore[misc]
    assert isinstance(guide, WithoutGuide) and allowed(guide) == set(range(640)) - {CALLS}
    guide.advance(40)
    assert allowed(guide) == set(range(640)) - {CALLS}


def test_required_begins_with_calls(one):
    guide = guide_of(one, None, read_tools([CLOCK], "required"))()  # type: ignore[misc]
    assert allowed(guide) == {CALLS}


def test_no_more_calls_than_the_limit(one):
    guide = guide_of(one, None, read_tools([CLOCK], "required"))()  # type: ignore[misc]
    guide.advance(CALLS)
    call = '{"name": "clock", "arguments": {}}'
    say(one, guide, "[" + ", ".join([call] * 32))
    assert allowed(guide) == set(one.tokenizer.ordinary_ids("]"))


def test_a_form_or_calls(one):
    guide = guide_of(one, formats.json_schema({"const": 1}), read_tools([CLOCK]))()  # type: ignore[misc]
    assert allowed(guide) == {CALLS, *one.tokenizer.ordinary_ids("1")}
    assert guide_of(one, None, None) is None


def test_tools_of_one_schema_do_not_see_anothers_definitions(one):
    def tool(name, target):
        schema = {
            "type": "object",
            "properties": {"v": {"$ref": "#/$defs/v"}},
            "required": ["v"],
            "additionalProperties": False,
            "$defs": {"v": target},
        }
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    tools = read_tools([tool("a", {"const": 1}), tool("b", {"const": 2})], "required")
    for name, right, wrong in (("a", "1", "2"), ("b", "2", "1")):
        guide = guide_of(one, None, tools)()  # type: ignore[misc]
        guide.advance(CALLS)
        say(one, guide, f'[{{"name": "{name}", "arguments": {{"v": ')
        assert set(one.tokenizer.ordinary_ids(right)) <= allowed(guide)
        assert set(one.tokenizer.ordinary_ids(wrong)).isdisjoint(allowed(guide))


def test_a_broken_tool_is_named(one):
    broken = {"type": "function", "function": {"name": "b", "strict": True, "parameters": {"not": {}}}}
    for choice in ("auto", "required"):
        with pytest.raises(StructureError, match="strict") as error:
            guide_of(one, None, read_tools([CLOCK, broken], choice))
        assert error.value.param == "tools[1].function.parameters"


def test_tokenizers_without_tools(one):
    class Other:
        def __init__(self, names):
            self.names = names

        def __getattr__(self, name):
            return getattr(one.tokenizer, name)

        def token_to_id(self, token):
            return self.names.get(token)

    for names, says in (({}, "no .TOOL_CALLS."), ({"[TOOL_CALLS]": 9, "[ARGS]": 10}, "ARGS")):
        with pytest.raises(StructureError, match=says):
            guide_of(Grammars(Other(names), [END]), None, read_tools([CLOCK]))


# --- the cache


def test_the_cache_has_limits(one):
    grammars = Grammars(one.tokenizer, [END], max_entries=3, max_chars=120)
    for n in range(6):
        grammars.compile(formats.choice([f"text {n}"]))
        assert len(grammars) <= 3
    assert grammars.num_compiled == 6
    grammars.compile(formats.choice(["text 5"]))
    assert grammars.num_compiled == 6, "it was there"
    grammars.compile(formats.choice(["text 0"]))
    assert grammars.num_compiled == 7, "it had gone"
    guide = grammars.compile(formats.choice(["x" * 200]))()  # larger than everything: used, not kept
    assert len(grammars) == 0 and grammars.num_chars == 0
    say(grammars, guide, "x" * 200)


def test_guides_of_one_grammar_go_their_own_ways(one):
    make = one.compile(formats.choice(["ab", "cd"]))
    first, second = make(), make()
    say(one, first, "ab")
    say(one, second, "cd")
    assert allowed(first) == allowed(second) == {END}


def test_several_threads(one):
    grammars, found = Grammars(one.tokenizer, [END]), []

    def work(n):
        guide = grammars.compile(formats.choice([f"{n % 3}"]))()
        say(grammars, guide, f"{n % 3}")
        found.append(allowed(guide) == {END})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12 and len(grammars) == 3


# --- SentencePiece


@pytest.mark.parametrize(
    "form",
    [
        formats.json_schema(
            {
                "type": "object",
                "properties": {"日本": {"enum": ["é", "  two"]}, "t": {"type": "string", "maxLength": 9}},
                "required": ["日本"],
                "additionalProperties": False,
            }
        ),
        formats.pattern("[a-zа-я]{3,9} [0-9]{2}"),
        formats.choice(["cat", " dog", "две кошки", "日本"]),
    ],
    ids=["json", "pattern", "choice"],
)
def test_sentencepiece(form):
    """Pixtral-Large's: a blank belongs to the word behind it, and the one before the first word is not shown."""
    tokenizer = MistralCommonTokenizer(LARGE)
    grammars = Grammars(tokenizer, [END])
    make = grammars.compile(form)
    for seed in range(12):
        guide, rng, ids, stream = make(), random.Random(seed), list[int](), StreamDecoder(tokenizer)
        while (token := rng.choice(sorted(allowed(guide, len(tokenizer))))) != END:
            guide.advance(token)
            ids.append(token)
        said = b"".join(tokenizer.id_to_bytes(token) or b"" for token in ids).decode()
        text = tokenizer.ids_to_text(ids, skip_special_tokens=True)
        assert text == "".join(map(stream.push, ids)) + stream.finish()
        assert said == f" {text}"
        if form.json:
            assert set(json.loads(text)) <= {"日本", "t"}
        else:
            assert text in (" dog", "cat", "две кошки", "日本") or re.fullmatch("[a-zа-я]{3,9} [0-9]{2}", text), said


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_over_sentencepiece(choice):
    tokenizer = MistralCommonTokenizer(LARGE)
    trigger = tokenizer.token_to_id("[TOOL_CALLS]")
    parameters = {
        "type": "object",
        "properties": {"город": {"enum": ["Тверь", "São Paulo"]}},
        "required": ["город"],
        "additionalProperties": False,
    }
    tools = read_tools([{"type": "function", "function": {"name": "weather", "parameters": parameters}}], choice)
    make = guide_of(Grammars(tokenizer, [END]), None, tools)
    for seed in range(6):
        guide, rng, parser = make(), random.Random(seed), AnswerParser(tokenizer, trigger, ends=[END])  # type: ignore[misc]
        words = tokenizer.ordinary_ids("Let me see.") if choice == "auto" else []
        content, calls, token = "", [], trigger
        for word in words:
            guide.advance(word)
            content += parser.push([word]).content
        while token != END:
            assert token in allowed(guide, len(tokenizer))
            guide.advance(token)
            delta = parser.push([token])
            content += delta.content
            for call in delta.calls:
                calls += [[call.name, ""]] if call.name is not None else []
                calls[-1][1] += call.arguments
            token = rng.choice(sorted(allowed(guide, len(tokenizer))))
        assert content == ("Let me see." if words else "") and calls
        for name, arguments in calls:
            assert name == "weather" and json.loads(arguments)["город"] in ("Тверь", "São Paulo")
