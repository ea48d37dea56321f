"""Questions and answers: each answer follows from the scene, and a conversation does not answer itself."""

from __future__ import annotations

import numpy as np
import pytest

from pixtral.training.questions import KINDS, NUMBERS, WHERE, Asker, conversation, describe, plural
from pixtral.training.scenes import COLOURS, SHAPES, sample_scene


def asked(kind: str, number: int = 150, seed: int = 0):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        scene = sample_scene(rng, 96, 128)
        question = Asker(scene, rng).one(kind)
        if question is not None:
            assert question.kind == kind
            yield scene, question


def words(text: str) -> list[str]:
    return text.rstrip(".?").replace(",", "").split()


def matching(scene, text: str):
    """The things that the words of a question can mean."""
    colours = [w for w in words(text) if w in COLOURS]
    shapes = [w for w in words(text) if w in SHAPES]
    return [t for t in scene.things if t.colour in (colours or COLOURS) and t.shape in (shapes or SHAPES)]


@pytest.mark.parametrize("kind", ["colour", "shape", "position"])
def test_a_question_means_one_thing_and_the_answer_is_about_it(kind):
    number = 0
    for scene, question in asked(kind):
        (thing,) = matching(scene, question.text)
        expected = {"colour": thing.colour, "shape": thing.shape, "position": WHERE[thing.cell]}[kind]
        assert question.answer.rstrip(".").endswith(expected)
        number += 1
    assert number > 100


def test_counts_are_right():
    for scene, question in asked("count", 300):
        text = words(question.text)
        shape = [s for s in SHAPES if plural(s) in text]
        colour = [c for c in COLOURS if c in text]
        found = [t for t in scene.things if t.shape in (shape or SHAPES) and t.colour in (colour or COLOURS)]
        said = words(question.answer)
        assert said[2] == NUMBERS[len(found)], (scene, question)
        assert said[1] == ("is" if len(found) == 1 else "are")


def test_relations_are_right():
    answers = []
    for scene, question in asked("relation", 300):
        for word in ("left of", "right of", "above", "below"):
            if f" {word} " in question.text:
                one, other = question.text.removeprefix("Is the ").split(f" {word} ")
                (a,), (b,) = matching(scene, one), matching(scene, other)
                truth = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[word]
                assert question.answer == ("Yes." if truth else "No.")
                answers.append(truth)
    assert 0.4 < np.mean(answers) < 0.6


def test_existence_is_right():
    answers = [bool(matching(scene, q.text)) for scene, q in asked("exists", 300)]
    assert answers == [q.answer == "Yes." for _, q in asked("exists", 300)]
    assert 0.4 < np.mean(answers) < 0.6


def test_a_description_names_everything_in_reading_order():
    for scene, question in asked("describe"):
        said = [w for w in words(question.answer) if w in COLOURS or w in SHAPES]
        assert said == [w for t in scene.things for w in (t.colour, t.shape)]
        assert question.answer == describe(scene) and question.answer[0] == "A"


def test_a_conversation_never_answers_its_own_later_questions():
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = sample_scene(rng, 96, 96)
        turns = conversation(scene, rng, dict.fromkeys(KINDS, 1.0), 5)
        assert 1 <= len(turns) <= 5
        given: set[int] = set()
        for turn in turns:
            assert not turn.shares & given
            given |= turn.shares
        kinds = [turn.kind for turn in turns]
        assert "describe" not in kinds[:-1]


def test_one_seed_gives_one_conversation():
    def talk():
        rng = np.random.default_rng(3)
        return [conversation(sample_scene(rng, 80, 80), rng, dict.fromkeys(KINDS, 1.0), 4) for _ in range(30)]

    assert talk() == talk()
