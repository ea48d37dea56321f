"""Training batches: generated images and conversations as pixels, token ids, targets, and labels of the patches.

Batch number `n` of a run depends on the seed, the stage and `n` alone, so an interrupted run continues with the batches
that it would have seen.
"""

from __future__ import annotations

import itertools
import pathlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from pixtral.images.geometry import expand, image_grid
from pixtral.training.pointing import ANSWER, DESCRIPTION, NAME, Pointer, answering, named_things, naming_ids
from pixtral.training.questions import Question, conversation
from pixtral.training.scenes import COLOURS, PLACES, SHAPES, SIDES, Scene, draw_labelled, sample_scene, sample_size
from pixtral.training.tiny_tokenizer import IMAGE_MEAN, IMAGE_STD, SPECIAL_TOKENS

T = TypeVar("T")

BOS, EOS, INST, END_INST, IMG, BREAK, IMG_END = map(
    SPECIAL_TOKENS.index, ("<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
)
PATCH = 16
IGNORED = -100
FEWEST_PIXELS = 12
"""A patch belongs to a thing that covers at least this many of its 256 pixels."""

SIZES = (len(COLOURS) + 1, len(SHAPES) + 1, 2, len(PLACES))
"""Classes of the four labels; the first class of colour and shape is "none"."""


@dataclass(frozen=True)
class Stage:
    """A stage of the curriculum: numbers of things in the images, and weights of the kinds of questions."""

    counts: tuple[int, ...]
    weights: dict[str, float]
    turns: int
    goal: dict[str, float] = field(default_factory=dict)
    """Accuracy on held-out images, by kind of question, at which the next stage begins."""
    sides: tuple[int, int] = SIDES
    alone: tuple[float, float] = (0.14, 0.28)


@dataclass(frozen=True)
class Batch:
    """Images of one size and their conversations, packed one after another.

    pixels (B, 3, H, W) float32, normalised; ids and positions (N,) int64; lengths: B numbers that sum to N;
    asked (R,) int64: where in the packed sequence a token is predicted; targets (R,) int64: which one.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    asked: torch.Tensor
    targets: torch.Tensor
    questions: tuple[Question, ...]
    rows: tuple[int, ...]
    """For each predicted token the index of its question in `questions`."""
    labels: torch.Tensor | None = None
    """(B * patches, 4) as of `patch_labels`; None for image sizes that are no multiple of the patch."""
    pointers: tuple[Pointer, ...] = ()
    """Tokens and the patches that they should attend to; none where there are no labels."""


class Encoder:
    """Encodes conversations to the ids that the chat template gives; each text is encoded once and cached."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._known: dict[str, list[int]] = {}
        self.words, self.articles = naming_ids(self.text)

    def text(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens."""
        ids = self._known.get(text)
        if ids is None:
            ids = self._known[text] = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return ids

    def conversation(self, image: Sequence[int], questions: Sequence[Question]) -> tuple[list[int], list[list[int]]]:
        """Ids of a whole conversation and, for each turn, the indices of its answer's ids (</s> included)."""
        ids, answers, head = [BOS], list[list[int]](), list(image)
        for question in questions:
            ids += [INST, *head, *self.text(question.text), END_INST]
            answer = [*self.text(question.answer), EOS]
            answers.append(list(range(len(ids), len(ids) + len(answer))))
            ids += answer
            head = []
        return ids, answers


def normalise(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 (H, W, 3) images of one size -> (B, 3, rows * 16, cols * 16) float32, as the image processor does it."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    height, width = stacked.shape[-2:]
    size = (-(-height // 16) * 16, -(-width // 16) * 16)
    if size != (height, width):
        stacked = torch.nn.functional.interpolate(stacked, size=size, mode="bicubic", antialias=True)
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    return (stacked.float() / 255 - mean) / std


def _pointers(
    encoder: Encoder,
    turns: Sequence[Question],
    tokens: Sequence[int],
    answers: Sequence[Sequence[int]],
    start: int,
    owners: npt.NDArray[np.int64],
) -> list[Pointer]:
    """The pointers of one conversation that begins at row `start` of a batch; `owners` as `patch_owners` gives them."""
    patches = np.flatnonzero(np.array(tokens) == IMG)
    found = []
    for turn, answer in zip(turns, answers, strict=True):
        asked_ids, answer_ids = encoder.text(turn.text), encoder.text(turn.answer)
        begin = answer[0] - 1 - len(asked_ids)
        named: list[int] = []
        for in_answer, offset, thing in named_things(turn, asked_ids, answer_ids, encoder.words, encoder.articles):
            mine = patches[owners == thing]
            row = start + offset + (answer[0] if in_answer else begin)
            named.append(row)
            if len(mine):
                route = DESCRIPTION if turn.kind == "describe" else NAME
                found.append(Pointer(row, start, tuple(int(start + at) for at in mine), route))
        if named:
            found += [
                Pointer(start + answer[0] + offset, start, tuple(named), ANSWER)
                for offset in answering(turn, [*answer_ids, EOS])
            ]
    return found


def make_batch(encoder: Encoder, stage: Stage, rng: np.random.Generator, size: int) -> Batch:
    """`size` new images of one random size with a conversation about each."""
    width, height = sample_size(rng, multiple=16 if rng.random() < 0.5 else 1, sides=stage.sides)
    scenes = [sample_scene(rng, width, height, stage.counts, stage.alone) for _ in range(size)]
    grid = image_grid(width, height)
    image = expand(grid, IMG, BREAK, IMG_END)
    drawn = [draw_labelled(scene) for scene in scenes]
    whole = width % PATCH == height % PATCH == 0
    ids: list[int] = []
    asked: list[int] = []
    questions: list[Question] = []
    rows: list[int] = []
    lengths: list[int] = []
    pointers: list[Pointer] = []
    for scene, (_, owners) in zip(scenes, drawn, strict=True):
        turns = conversation(scene, rng, stage.weights, stage.turns)
        tokens, answers = encoder.conversation(image, turns)
        if whole:
            pointers += _pointers(encoder, turns, tokens, answers, len(ids), patch_owners(owners, len(scene.things)))
        for number, answer in enumerate(answers):
            asked += [len(ids) + at - 1 for at in answer]
            rows += [len(questions) + number] * len(answer)
        questions += turns
        ids += tokens
        lengths.append(len(tokens))
    packed, where = torch.tensor(ids), torch.tensor(asked)
    labels = None
    if whole:
        each = [patch_labels(scene, owners) for scene, (_, owners) in zip(scenes, drawn, strict=True)]
        labels = torch.from_numpy(np.concatenate(each))
    return Batch(
        pixels=normalise([pixels for pixels, _ in drawn]),
        ids=packed,
        positions=torch.cat([torch.arange(n) for n in lengths]),
        lengths=tuple(lengths),
        asked=where,
        targets=packed[where + 1],
        questions=tuple(questions),
        rows=tuple(rows),
        labels=labels,
        pointers=tuple(pointers),
    )


def prefetch(make: Callable[[int], T], start: int, depth: int = 4) -> Generator[T, None, None]:
    """Yield make(start), make(start + 1), ... for ever, made ahead of time by one thread."""
    with ThreadPoolExecutor(1) as pool:
        ready = deque(pool.submit(make, start + ahead) for ahead in range(depth))
        try:
            for number in itertools.count(start + depth):
                yield ready.popleft().result()
                ready.append(pool.submit(make, number))
        finally:
            pool.shutdown(cancel_futures=True)


def patch_owners(owners: npt.NDArray[np.int64], things: int) -> npt.NDArray[np.int64]:
    """The index of the thing that each patch belongs to, or -1, (rows * columns,).

    Args:
        owners: the same for each pixel, as `draw_labelled` returns it.
        things: how many there are.
    """
    covered = _covered_pixels(owners, things)
    return np.where(covered.max(1) >= FEWEST_PIXELS, covered.argmax(1), -1)


def patch_labels(scene: Scene, owners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Colour, shape, middle of a thing or not, and place of every patch, (rows * columns, 4) in row-major order.

    Args:
        scene: of the image.
        owners: of its pixels, as `draw_labelled` returns it.
    """
    owner = patch_owners(owners, len(scene.things))
    labels = np.full((len(owner), 4), IGNORED, dtype=np.int64)
    labels[_covered_pixels(owners, len(scene.things)).max(1) == 0] = (0, 0, 0, IGNORED)
    names = list(COLOURS)
    for index, thing in enumerate(scene.things):
        labels[owner == index] = (1 + names.index(thing.colour), 1 + SHAPES.index(thing.shape), 0, thing.cell)
        middle = int(thing.y) // PATCH * (owners.shape[1] // PATCH) + int(thing.x) // PATCH
        if owner[middle] == index:
            labels[middle, 2] = 1
    return labels


def _covered_pixels(owners: npt.NDArray[np.int64], things: int) -> npt.NDArray[np.int64]:
    """How many pixels of each patch each thing covers, (rows * columns, things)."""
    rows, columns = owners.shape[0] // PATCH, owners.shape[1] // PATCH
    patches = owners.reshape(rows, PATCH, columns, PATCH).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    return np.stack([(patches == index).sum(1) for index in range(things)], axis=1)
