"""An auxiliary loss on attention: a word that names a thing should attend to the patches of that thing.

Answers about several things need this lookup by name, and a decoder of this size learns it last from answers alone
(after 58,000 images it still picked one of two things at random). So two heads of one layer are supervised directly:
their attention at the naming word should be on the thing's patches. In a description, one layer later, the article
and the colour of the k-th thing attend to it, and in other answers the words before the content ("is", "a", "at the")
attend to the naming word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pixtral.layers.blocks import Rotation, rotate
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralAttention, MistralDecoderLayer
from pixtral.training.questions import Question
from pixtral.training.scenes import COLOURS, SHAPES

ROUTES = ((1, (0, 3)), (2, (0, 3)), (2, (1, 4)))
"""Decoder layer and heads that are supervised: for names in questions, for descriptions, for answers (see above)."""

NAME, DESCRIPTION, ANSWER = range(3)


@dataclass(frozen=True)
class Pointer:
    """The token at `row` of the packed batch, in the sequence that begins at `start`, should attend to `rows`."""

    row: int
    start: int
    rows: tuple[int, ...]
    route: int


def naming_ids(encode: Callable[[str], list[int]]) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the words for colours and shapes, and of the articles, inside a sentence."""
    words = frozenset(encode(f" {word}")[-1] for word in (*COLOURS, *SHAPES))
    return words, frozenset(encode(word)[-1] for word in ("A", " a", " an"))


def named_things(
    question: Question, asked: Sequence[int], answer: Sequence[int], words: frozenset[int], articles: frozenset[int]
) -> Iterator[tuple[bool, int, int]]:
    """(in the answer?, offset, index of the thing) for each token of a turn that names a thing."""
    if question.kind == "describe":
        thing = -1
        for offset, token in enumerate(answer):
            if token in articles:
                thing += 1
                yield True, offset, thing
            elif token in words and offset and answer[offset - 1] in articles:
                yield True, offset, thing
    elif question.thing is not None:
        offsets = [offset for offset, token in enumerate(asked) if token in words]
        if offsets:
            yield False, offsets[-1], question.thing
        if question.kind == "colour" and len(answer) > 1 and answer[1] in words:
            yield True, 1, question.thing


def answering(question: Question, answer: Sequence[int]) -> list[int]:
    """Offsets in the answer of the tokens before its content: "is" red, "a" star."""
    if question.thing is None:
        return []
    end = len(answer) - 3  # before the full stop and </s>
    return list(range(2, end)) if question.kind == "position" else [end - 1]


def _attention(model: LlavaForConditionalGeneration, index: int) -> MistralAttention:
    layer = model.model.language_model.layers[index]
    assert isinstance(layer, MistralDecoderLayer)
    return layer.self_attn


@contextlib.contextmanager
def attention_inputs(model: LlavaForConditionalGeneration) -> Iterator[dict[int, tuple[torch.Tensor, Rotation]]]:
    """A context in which a forward pass records the inputs of the attention of each layer of `ROUTES`."""
    seen: dict[int, tuple[torch.Tensor, Rotation]] = {}

    def keep(index: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, Rotation]], None]:
        def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, Rotation]) -> None:
            seen[index] = (arguments[0], arguments[1])

        return hook

    handles = [
        _attention(model, index).register_forward_pre_hook(keep(index)) for index in {layer for layer, _ in ROUTES}
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pointing_loss(
    model: LlavaForConditionalGeneration,
    seen: dict[int, tuple[torch.Tensor, Rotation]],
    pointers: Sequence[Pointer],
) -> torch.Tensor:
    """Mean of -log(attention on the right patches) over pointers and heads; `seen` is from `attention_inputs`."""
    losses = []
    for route, (index, heads) in enumerate(ROUTES):
        mine = [pointer for pointer in pointers if pointer.route == route]
        if not mine:
            continue
        attention = _attention(model, index)
        x, (cos, sin) = seen[index]
        rows = torch.tensor([p.row for p in mine])
        starts = torch.tensor([p.start for p in mine])
        reach = rows - starts + 1
        offsets = torch.arange(int(reach.max()))
        allowed = offsets[None] < reach[:, None]
        keys_at = (starts[:, None] + offsets[None]).clamp(max=len(x) - 1)
        right = torch.zeros(allowed.shape, dtype=torch.bool)
        for number, pointer in enumerate(mine):
            right[number, torch.tensor(pointer.rows) - pointer.start] = True
        q = attention.q_proj(x[rows]).unflatten(-1, (-1, attention.head_dim))
        k = attention.k_proj(x).unflatten(-1, (-1, attention.head_dim))
        q, k = rotate(q.float(), (cos[rows], sin[rows])), rotate(k.float(), (cos, sin))
        group = q.shape[1] // k.shape[1]
        for head in heads:
            scores = torch.einsum("rd,rld->rl", q[:, head], k[keys_at, head // group]) * attention.head_dim**-0.5
            every = scores.masked_fill(~allowed, float("-inf")).logsumexp(-1)
            hit = scores.masked_fill(~right, float("-inf")).logsumexp(-1)
            losses.append((every - hit).mean())
    return torch.stack(losses).mean() if losses else torch.zeros(())
