"""Questions about a generated scene with their right answers, and conversations that do not give answers away.

Kinds of question: colour, shape, count, position, relation, exists, describe. An answer is one short sentence and
follows from the scene alone. In a conversation each thing is asked about once and the description comes last, so
that no answer is contained in an earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pixtral.training.scenes import COLOURS, PLACES, SHAPES, Scene, Thing

KINDS = ("colour", "shape", "count", "position", "relation", "exists", "describe")
"""Every kind of question; the first four are the ones the model is measured on."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

WHERE = tuple(f"at the {place}" for place in PLACES)
"""The phrases of answers for cells 0..8 (see `scenes.PLACES`)."""

_COLOUR_OF = (
    "What colour is the {0}?",
    "What color is the {0}?",
    "Which colour is the {0}?",
    "Tell me the colour of the {0}.",
    "What is the colour of the {0}?",
    "What is the color of the {0}?",
)
_COLOUR_OF_IT = ("What colour is it?", "What colour is the shape?", "What color is this?", "Which colour is this?")
_SHAPE_OF = (
    "What shape is the {0} thing?",
    "What is the {0} thing?",
    "What shape is the {0} object?",
    "Which shape is {0}?",
    "What is the shape of the {0} object?",
    "Which shape is the {0} one?",
)
_SHAPE_OF_IT = ("What shape is it?", "What shape is this?", "Which shape is in the picture?", "Name the shape.")
_COUNT_ALL = (
    "How many shapes are there?",
    "How many objects are in the picture?",
    "How many things do you see?",
    "How many shapes are in the image?",
    "Count the shapes.",
    "How many things are there?",
)
_COUNT = ("How many {0} are there?", "How many {0} do you see?", "How many {0} are in the picture?", "Count the {0}.")
_POSITION = (
    "Where is the {0}?",
    "Where is the {0} in the picture?",
    "In which part of the image is the {0}?",
    "Tell me where the {0} is.",
)
_POSITION_OF_IT = ("Where is it?", "Where is the shape?", "Where is the object in the picture?")
_RELATION = ("Is the {0} {2} the {1}?",)
_EXISTS = ("Is there a {0}?", "Is there a {0} in the picture?", "Do you see a {0}?", "Can you see a {0}?")
_DESCRIBE = (
    "Describe the picture.",
    "Describe this image.",
    "What do you see?",
    "What is in the picture?",
    "What is this?",
    "What is in this image?",
    "What does the image show?",
    "What can you see in the picture?",
)


@dataclass(frozen=True)
class Question:
    """A question and its right answer.

    `shares` are the indices of the things whose colour and shape it gives away together; `thing` is the index of the
    one thing it asks about, if it is about one.
    """

    kind: str
    text: str
    answer: str
    shares: frozenset[int] = frozenset()
    thing: int | None = None


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _number(count: int, noun: str) -> str:
    """The answer to a question for a number: "There are two circles."."""
    return f"There is one {noun}." if count == 1 else f"There are {NUMBERS[count]} {plural(noun)}."


def plural(noun: str) -> str:
    """The plural of a shape's name: "crosses", "stars"."""
    return noun + ("es" if noun.endswith("ss") else "s")


def describe(scene: Scene) -> str:
    """One sentence that names everything in reading order: "A red circle, a blue star and a white ring."."""
    names = [_article(f"{thing.colour} {thing.shape}") for thing in scene.things]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{joined[0].upper()}{joined[1:]}."


def _reference(thing: Thing, scene: Scene, rng: np.random.Generator) -> str:
    """A phrase that can mean only `thing`: "circle", "red shape" or "red circle"."""
    choices = [f"{thing.colour} {thing.shape}"]
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        choices.append(thing.shape)
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        choices.append(f"{thing.colour} {('shape', 'thing', 'object')[rng.integers(3)]}")
    return choices[rng.integers(len(choices))]


class Asker:
    """Asks questions about one scene, in words chosen by `rng`."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng

    def _pick(self, phrasings: Sequence[str]) -> str:
        return phrasings[int(self.rng.integers(len(phrasings)))]

    def colour(self, index: int) -> Question | None:
        """The colour of thing `index`; None when its shape does not single it out."""
        things, thing = self.scene.things, self.scene.things[index]
        if sum(other.shape == thing.shape for other in things) > 1:
            return None
        if len(things) == 1 and self.rng.random() < 0.4:
            return Question("colour", self._pick(_COLOUR_OF_IT), f"It is {thing.colour}.", frozenset({index}), index)
        text = self._pick(_COLOUR_OF).format(thing.shape)
        return Question("colour", text, f"The {thing.shape} is {thing.colour}.", frozenset({index}), index)

    def shape(self, index: int) -> Question | None:
        """The shape of thing `index`; None when its colour does not single it out."""
        things, thing = self.scene.things, self.scene.things[index]
        if sum(other.colour == thing.colour for other in things) > 1:
            return None
        answer = f"It is {_article(thing.shape)}."
        if len(things) == 1 and self.rng.random() < 0.4:
            return Question("shape", self._pick(_SHAPE_OF_IT), answer, frozenset({index}), index)
        return Question("shape", self._pick(_SHAPE_OF).format(thing.colour), answer, frozenset({index}), index)

    def position(self, index: int) -> Question:
        """In which of the nine cells thing `index` is."""
        thing = self.scene.things[index]
        if len(self.scene.things) == 1 and self.rng.random() < 0.4:
            return Question("position", self._pick(_POSITION_OF_IT), f"It is {WHERE[thing.cell]}.", thing=index)
        name = _reference(thing, self.scene, self.rng)
        shares = frozenset({index}) if name == f"{thing.colour} {thing.shape}" else frozenset[int]()
        return Question("position", self._pick(_POSITION).format(name), f"It is {WHERE[thing.cell]}.", shares, index)

    def count(self) -> Question:
        """How many things there are: all, of one shape, or of one colour."""
        things, roll = self.scene.things, self.rng.random()
        if roll < 0.4:
            return Question("count", self._pick(_COUNT_ALL), _number(len(things), "shape"))
        if roll < 0.8:
            shapes = [thing.shape for thing in things]
            frequent = Counter(shapes).most_common(1)[0][0]
            options = [frequent, shapes[self.rng.integers(len(shapes))], SHAPES[self.rng.integers(len(SHAPES))]]
            noun = options[int(self.rng.choice(3, p=[0.45, 0.35, 0.2]))]
            return Question("count", self._pick(_COUNT).format(plural(noun)), _number(shapes.count(noun), noun))
        colours = [thing.colour for thing in things]
        names = list(COLOURS)
        options = [Counter(colours).most_common(1)[0][0], names[self.rng.integers(len(names))]]
        colour = options[int(self.rng.choice(2, p=[0.8, 0.2]))]
        text = self._pick(_COUNT).format(f"{colour} shapes")
        return Question("count", text, _number(colours.count(colour), f"{colour} shape"))

    def relation(self) -> Question | None:
        """Whether one thing is left of, right of, above or below another; None when no two are clearly apart."""
        count = len(self.scene.things)
        if count < 2:
            return None
        first, second = (int(i) for i in self.rng.choice(count, 2, replace=False))
        one, other = self.scene.things[first], self.scene.things[second]
        (row, column), (row2, column2) = divmod(one.cell, 3), divmod(other.cell, 3)
        options = [("left of", column < column2), ("right of", column > column2)] if column != column2 else []
        options += [("above", row < row2), ("below", row > row2)] if row != row2 else []
        word, truth = options[self.rng.integers(len(options))]
        names = [_reference(thing, self.scene, self.rng) for thing in (one, other)]
        text = self._pick(_RELATION).format(names[0], names[1], word)
        shares = [i for i, name in zip((first, second), names, strict=True) if name.split()[0] in COLOURS]
        return Question("relation", text, "Yes." if truth else "No.", frozenset(shares))

    def exists(self) -> Question:
        """Whether a thing of some shape, or some colour and shape, is there; yes and no are equally likely."""
        things = self.scene.things
        thing = things[self.rng.integers(len(things))]
        colour, shape = thing.colour, thing.shape
        truth, both = self.rng.random() < 0.5, self.rng.random() < 0.5
        pairs, shapes = {(t.colour, t.shape) for t in things}, {t.shape for t in things}
        while not truth and ((colour, shape) in pairs if both else shape in shapes):
            changed = self.rng.random()
            if not both or changed < 0.5:
                shape = SHAPES[self.rng.integers(len(SHAPES))]
            else:
                colour = list(COLOURS)[self.rng.integers(len(COLOURS))]
        name = f"{colour} {shape}" if both else shape
        index = frozenset({things.index(thing)}) if both else frozenset[int]()
        text = self._pick(_EXISTS).format(name).replace(" a orange", " an orange")
        return Question("exists", text, "Yes." if truth else "No.", index)

    def describe(self) -> Question:
        """Everything in the image."""
        return Question(
            "describe", self._pick(_DESCRIBE), describe(self.scene), frozenset(range(len(self.scene.things)))
        )

    def one(self, kind: str) -> Question | None:
        """A question of this kind, or None when the scene allows none."""
        order = self.rng.permutation(len(self.scene.things))
        if kind in ("colour", "shape"):
            asked = ((self.colour if kind == "colour" else self.shape)(int(i)) for i in order)
            return next((question for question in asked if question), None)
        if kind == "position":
            return self.position(int(order[0]))
        simple = {"count": self.count, "relation": self.relation, "exists": self.exists, "describe": self.describe}
        return simple[kind]()


def conversation(scene: Scene, rng: np.random.Generator, weights: dict[str, float], turns: int) -> list[Question]:
    """Up to `turns` questions about `scene`, kinds drawn with `weights`; none is answered by an earlier turn."""
    asker, asked, given = Asker(scene, rng), list[Question](), set[int]()
    names, chances = list(weights), np.array(list(weights.values()))
    for _ in range(2 * turns):
        kind = names[int(rng.choice(len(names), p=chances / chances.sum()))]
        question = asker.one(kind)
        if question is None or question.shares & given:
            continue
        if any(q.text == question.text or (q.kind, q.answer) == ("count", question.answer) for q in asked):
            continue
        asked.append(question)
        given |= question.shares
        if len(asked) == turns or kind == "describe":
            break
    return asked or [asker.describe()]


def vocabulary() -> Iterator[str]:
    """Texts that together hold every word the questions and answers use, for building a tokenizer."""
    for group in (_COLOUR_OF, _COLOUR_OF_IT, _SHAPE_OF, _SHAPE_OF_IT, _COUNT_ALL, _COUNT, _POSITION, _POSITION_OF_IT):
        yield from (text.replace("{0}", "x") for text in group)
    yield from (text.replace("{0}", "x").replace("{1}", "x").replace("{2}", "left of") for text in _RELATION)
    yield from (text.replace("{0}", "x") for text in (*_EXISTS, *_DESCRIBE))
    yield from (f"The {shape} is {plural(shape)}, It is {_article(shape)}." for shape in SHAPES)
    yield from (f"It is {colour}, a {colour} and an {colour}. A {colour}. {colour.title()}" for colour in COLOURS)
    yield from (f"There are {number} shapes, is one thing." for number in NUMBERS)
    yield from (f"It is {word} the {place}." for place in PLACES for word in ("at", "in", "on"))
    yield "Yes. No. An A shape objects right of above below"
