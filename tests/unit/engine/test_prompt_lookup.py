"""Drafts out of the text itself: where they come from, how long they are, and what is never drafted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixtral.engine.prompt_lookup import Proposer, image_ids
from pixtral.engine.sampling_params import PromptLookup
from pixtral.errors import GenerationError

IMG, BREAK, END = 10, 12, 13


def drafts(text, *, tokens=10, ngram=2, limit=100, **kwargs):
    return Proposer(PromptLookup(tokens, ngram), text, **kwargs).propose(limit)


def test_what_followed_the_newest_tokens_before():
    assert drafts([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5]
    assert drafts([1, 2, 3, 9, 2, 7, 1, 2]) == [3, 9, 2]  # two tokens say more than one
    assert drafts([1, 2, 3, 9, 2, 7, 4, 2]) == [3]  # one token, where two never stood before
    assert drafts([1, 2, 3, 1, 2, 4, 1, 2], ngram=3) == [3, 1, 2]  # the earliest of equals
    assert drafts([1, 2, 3, 4]) == [] == drafts([1]) == drafts([])


def test_the_more_has_agreed_the_more_is_drafted():
    story = list(range(20, 60))
    proposer = Proposer(PromptLookup(10), [*story, 1, 20])
    lengths = []
    for token in story[1:8]:
        draft = proposer.propose(100)
        assert draft == story[story.index(token) :][: len(draft)]
        lengths.append(len(draft))
        proposer.extend([token])
    assert lengths == [1, 3, 7, 10, 10, 10, 10]
    assert proposer.propose(4) == story[8:12]
    assert proposer.propose(0) == []


def test_a_text_that_repeats_itself_is_drafted_past_its_end():
    assert drafts([1, 2, 1, 2], ngram=3)[:3] == [1, 2, 1]
    proposer = Proposer(PromptLookup(7), [5, 6, 5, 6, 5])
    proposer.propose(7)
    proposer.extend([6])
    assert proposer.propose(7) == [5, 6, 5, 6, 5, 6, 5]


def test_after_a_departure_the_text_goes_on_near_by():
    """Copying with one word replaced: the copy goes on behind the word, not where its neighbour stood first."""
    early, story = [7, 30, 31, 32], [20, 21, 22, 23, 24, 7, 40, 41, 42]
    proposer = Proposer(PromptLookup(10), [*early, *story, 20, 21])
    assert proposer.propose(10) == [22, 23, 24]
    proposer.extend([22, 23, 99])
    assert proposer.propose(10) == []
    proposer.extend([7])
    assert proposer.propose(10) == [40]
    guessed_wrong = Proposer(PromptLookup(10), [*early, *story, 7])
    assert guessed_wrong.propose(10) == [30]


def test_images_are_neither_drafted_nor_matched():
    grid = [IMG, IMG, BREAK, IMG, IMG, END]
    prompt = [1, *grid, 50, 51, *grid, 60, 61]
    skip = image_ids(prompt, IMG)
    assert skip == {IMG, BREAK, END}
    assert image_ids([1, 2], IMG) == {IMG} and image_ids(prompt, None) == frozenset()
    assert drafts([*prompt, 50], skip=skip) == [51]
    assert drafts([*prompt, 50, 51], skip=skip) == []  # an image follows
    for tail in (grid[:1], grid[:2], grid[:3], grid):
        assert drafts([*prompt, *tail], skip=skip) == []
    # the tokens before and behind an image are no n-gram
    assert drafts([1, IMG, 2, 3, 5, 2, 4, 1, 2], skip={IMG}, ngram=3) == [3]


def test_ends_are_not_drafted():
    assert drafts([1, 2, 3, 0, 5, 1, 2], ends=[0]) == [3]
    assert drafts([1, 2, 0, 5, 1, 2], ends=[0]) == []


texts = st.lists(st.integers(0, 5), max_size=40)


@given(texts, st.lists(texts, max_size=4), st.integers(1, 6), st.integers(1, 4), st.integers(0, 8))
def test_drafts_stood_behind_the_newest_tokens_before(prompt, pieces, tokens, ngram, limit):
    """Whatever the text, by the slow definition that looks at every place; 4 stands for images, 5 ends a text."""
    proposer, text = Proposer(PromptLookup(tokens, ngram), prompt, skip={4}, ends={5}), list(prompt)
    for piece in [[], *pieces]:
        proposer.extend(piece)
        text += piece
        draft = proposer.propose(limit)
        assert len(draft) <= min(tokens, limit) and not {4, 5}.intersection(draft)
        places = [i for i in range(1, len(text)) if text[i - 1] == text[-1] != 4]
        behind = [(text[place:] * 8)[: len(draft)] for place in places]  # past its end a text repeats
        if draft:
            assert draft in behind
        elif limit and places:
            assert any(text[place] in (4, 5) for place in places)
        if len(draft) > 1:  # more than one token only where more than one agreed
            assert any(text[place - 2 : place] == text[-2:] for place in places)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10"])
def test_refused(wrong):
    with pytest.raises(GenerationError, match="prompt_lookup_num_tokens is"):
        PromptLookup(wrong)
    with pytest.raises(GenerationError, match="max_matching_ngram_size is"):
        PromptLookup(3, wrong)
