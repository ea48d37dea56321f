"""Stop strings across token borders, characters split over tokens, and prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pixtral.generation.sampling import StopStrings


class Bytes:
    """Tokens are runs of one or more bytes, given by the words."""

    def __init__(self, words):
        self.words = words

    def decode(self, token_ids, skip_special_tokens=False):
        return b"".join(self.words[i] for i in token_ids).decode(errors="replace")


def test_where_a_string_may_end():
    words = [b"foo", b"bar", b"barn", b" ", b"o", "é".encode()[:1], "é".encode()[1:], b"x"]
    stops = StopStrings(["obar", "é!", "\u00e9x"], Bytes(words))
    assert stops.match([0, 1]) == "obar"
    assert stops.match([0, 2]) == "obar"  # and something behind it in the same token
    assert stops.match([0, 3, 1]) is None
    assert stops.match([0, 1, 3]) is None  # it ended in an earlier token
    assert stops.match([5]) is None
    assert stops.match([5, 6]) is None
    assert stops.match([5, 6, 7]) == "\u00e9x"
    assert stops.match([]) is None
    assert StopStrings([], Bytes(words)).match([0]) is None


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
    stops = StopStrings([stop], Bytes(words))
    found = [n for n in range(1, len(words) + 1) if stops.match(list(range(n)))]
    lengths = [len(b"".join(words[:n])) for n in range(1, len(words) + 1)]
    assert found and found[0] == next(n for n, length in enumerate(lengths, 1) if length >= end)
