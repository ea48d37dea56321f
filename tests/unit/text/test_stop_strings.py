"""Stop strings: in pieces of text, across token borders, in characters split over tokens, and after prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pixtral.text.detokenizer import Detokenizer, StopStrings

letters = st.text("abc\n", max_size=12)


def cut_off(text: str, stops: list[str]) -> str:
    """The slow twin: the whole text at once."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def run(pieces, stops):
    stop_text, shown = StopStrings(stops), ""
    for piece in pieces:
        shown += stop_text.push(piece)
        if stop_text.stop is not None:
            return shown, True
    return shown + stop_text.finish(), False


@given(st.lists(letters), st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3))
def test_pieces_give_what_the_whole_text_gives(pieces, stops):
    # a stop string ends the text where it is complete first: pieces after that are never asked for
    shown, found = run(pieces, stops)
    read = ""
    for piece in pieces:
        read += piece
        if any(stop in read for stop in stops):
            break
    assert shown == cut_off(read, stops)
    assert found == any(stop in read for stop in stops)


def test_only_a_possible_beginning_is_held_back():
    stop_text = StopStrings(["###"])
    assert stop_text.push("ab#") == "ab"
    assert stop_text.push("c") == "#c"
    assert stop_text.push("##") == ""
    assert stop_text.push("#d") == ""
    assert stop_text.stop is not None


def test_what_was_held_back_comes_at_the_end():
    stop_text = StopStrings(["END"])
    assert stop_text.push("the EN") == "the "
    assert stop_text.finish() == "EN"


def test_without_stop_strings_nothing_is_held_back():
    assert StopStrings([]).push("anything") == "anything"


class Bytes:
    """Tokens are runs of one or more bytes, given by the words."""

    def __init__(self, words):
        self.words = words

    def decode(self, token_ids, skip_special_tokens=False):
        return b"".join(self.words[i] for i in token_ids).decode(errors="replace")


def stop_of(words, stops, prompt, new):
    detokenizer = Detokenizer(Bytes(words), stops, skip_special_tokens=False, prompt_ids=prompt)
    for token in new:
        detokenizer.push(token)
        if detokenizer.stop is not None:
            return detokenizer.stop, token
    return None


def test_where_a_string_may_end():
    words = [b"foo", b"bar", b"barn", b" ", b"o", "\u00e9".encode()[:1], "\u00e9".encode()[1:], b"x"]
    stops = ["obar", "\u00e9!", "\u00e9x"]
    assert stop_of(words, stops, [0], [1]) == ("obar", 1)  # it begins in the prompt
    assert stop_of(words, stops, [], [0, 2]) == ("obar", 2)  # and something after it in the same token
    assert stop_of(words, stops, [0], [3, 1]) is None
    assert stop_of(words, stops, [0, 1], [3]) is None  # it lies in the prompt
    assert stop_of(words, stops, [], [5, 6]) is None
    assert stop_of(words, stops, [5], [6, 7]) == ("\u00e9x", 7)
    assert stop_of(words, [], [], [0]) is None


@given(st.text(max_size=12), st.text(min_size=1, max_size=4), st.text(max_size=6), st.data())
def test_any_split_finds_the_string_with_its_last_byte(before, stop, after, data):
    raw = (before + stop + after).encode("utf-8", errors="ignore")
    stop = stop.encode("utf-8", errors="ignore").decode()
    if not stop or "\ufffd" in raw.decode():
        return
    first = raw.decode().find(stop)
    end = len(raw.decode()[: first + len(stop)].encode())
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=12)))
    words = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]
    found = stop_of(words, [stop], [], range(len(words)))
    lengths = [len(b"".join(words[: n + 1])) for n in range(len(words))]
    assert found == (stop, next(n for n, length in enumerate(lengths) if length >= end))
