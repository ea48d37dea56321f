"""StopText: the text up to the first stop string, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pixtral.assistant.stream import StopText

letters = st.text("abc\n", max_size=12)


def cut_off(text: str, stops: list[str]) -> str:
    """The slow twin: the whole text at once."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def run(pieces, stops):
    stop_text, shown = StopText(stops), ""
    for piece in pieces:
        shown += stop_text.push(piece)
        if stop_text.found:
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
    stop_text = StopText(["###"])
    assert stop_text.push("ab#") == "ab"
    assert stop_text.push("c") == "#c"
    assert stop_text.push("##") == ""
    assert stop_text.push("#d") == ""
    assert stop_text.found


def test_what_was_held_back_comes_at_the_end():
    stop_text = StopText(["END"])
    assert stop_text.push("the EN") == "the "
    assert stop_text.finish() == "EN"


def test_without_stop_strings_nothing_is_held_back():
    assert StopText([]).push("anything") == "anything"
