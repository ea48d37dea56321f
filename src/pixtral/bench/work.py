"""Operations and bytes of each phase, and measured times beside what they allow at best (a roofline model)."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

from torch import nn

from pixtral.bench.ceilings import Ceilings
from pixtral.layers.linear import QuantizedLinear
from pixtral.models.llava import LlavaForConditionalGeneration


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations and bytes of a computation.

    Attributes:
        int8: operations on 8-bit integers, two for each multiply-add.
        bf16: operations on all other formats.
        bytes: read from memory at least once.
    """

    int8: float = 0.0
    bf16: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.int8 + other.int8, self.bf16 + other.bf16, self.bytes + other.bytes)

    @property
    def operations(self) -> float:
        """All operations."""
        return self.int8 + self.bf16

    def least_seconds(self, ceilings: Ceilings) -> float:
        """The least possible time on a machine with these ceilings: computing or reading, whichever takes longer."""
        return max(self.int8 / ceilings.int8 + self.bf16 / ceilings.bf16, self.bytes / ceilings.read)

    def limit(self, ceilings: Ceilings) -> str:
        """The ceiling that decides `least_seconds`: "read", "int8", "bf16" or, of the last two, "mixed"."""
        int8, bf16, read = self.int8 / ceilings.int8, self.bf16 / ceilings.bf16, self.bytes / ceilings.read
        if read >= int8 + bf16:
            return "read"
        if min(int8, bf16) > 0.25 * max(int8, bf16):
            return "mixed"
        return "int8" if int8 > bf16 else "bf16"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The times of one phase beside the work it did.

    Attributes:
        runs: seconds of each run, as measured.
        seconds: the median, scaled to all layers where only some were there.
        work: of one run, as measured.
        share: the median over the runs of least possible seconds / seconds.
        limit: the ceiling that decides the least possible seconds: "read", "int8", "bf16", or "mixed".
        tokens: that a run read or generated, or None.
    """

    runs: tuple[float, ...]
    seconds: float
    work: Work
    share: float
    limit: str
    tokens: int | None = None

    @classmethod
    def of(
        cls, runs: list[tuple[float, Ceilings]], work: Work, *, tokens: int | None = None, extra: float = 0.0
    ) -> Measurement:
        """From the runs: seconds, and the ceilings at that time.

        Args:
            extra: estimated seconds of the layers that the model does not have.
        """
        seconds = [run for run, _ in runs]
        share = statistics.median(work.least_seconds(ceilings) / run for run, ceilings in runs)
        return cls(tuple(seconds), statistics.median(seconds) + extra, work, share, work.limit(runs[0][1]), tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """Throughput."""
        return None if self.tokens is None else self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        measured = statistics.median(self.runs)
        facts: dict[str, Any] = {"seconds": round(self.seconds, 5), "runs": [round(run, 5) for run in self.runs]}
        if self.tokens is not None:
            facts |= {"tokens": self.tokens, "tokens_per_second": round(self.tokens / self.seconds, 3)}
        return facts | {
            "gb_s": round(self.work.bytes / measured / 1e9, 2),
            "top_s": round(self.work.operations / measured / 1e12, 4),
            "limit": self.limit,
            "share": round(self.share, 4),
        }


def linear_work(modules: Iterable[nn.Module], rows: int) -> Work:
    """The linear layers among modules, on `rows` rows."""
    total = Work()
    for module in modules:
        width, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if not isinstance(width, int) or not isinstance(out, int):
            continue
        operations = 2.0 * rows * width * out
        in_int8 = isinstance(module, QuantizedLinear) and module.activations == "int8"
        total += Work(
            operations if in_int8 else 0.0, 0.0 if in_int8 else operations, sum(map(_nbytes, _tensors(module)))
        )
    return total


def decoder_work(model: LlavaForConditionalGeneration, rows: int, keys: int, cache_bytes: int) -> Work:
    """The decoder on `rows` tokens of one sequence and the logits of the last one, which attends to `keys` keys.

    Args:
        cache_bytes: of one token in the KV cache, in all layers.
    """
    text = model.text_config
    assert text.head_dim is not None
    seen = rows * (keys - (rows - 1) / 2)  # keys of all rows together
    attention = 4.0 * seen * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    once = {id(module) for module in _for_wanted_rows(model)}
    work = linear_work((module for module in model.decoder.modules() if id(module) not in once), rows)
    work += linear_work([*_for_wanted_rows(model), model.lm_head], 1)
    return work + Work(bf16=attention, bytes=float(keys * cache_bytes))


def _for_wanted_rows(model: LlavaForConditionalGeneration) -> list[nn.Module]:
    """The modules of the last layer that run only on rows whose logits are wanted."""
    last: Any = model.decoder.layers[-1]
    return [last.self_attn.o_proj, *last.mlp.modules()]


def idle_share(model: LlavaForConditionalGeneration) -> float:
    """The share of the last layer's linear work that is skipped for rows whose logits are not wanted."""
    idle = linear_work(_for_wanted_rows(model), 1).operations
    return idle / linear_work(model.decoder.layers[-1].modules(), 1).operations


def image_work(model: LlavaForConditionalGeneration, patches: int) -> Work:
    """Vision tower and projector on one image of that many patches."""
    vision = model.config.vision_config
    pixels = vision.num_channels * vision.patch_size**2
    attention = 4.0 * patches * patches * vision.hidden_size * vision.num_hidden_layers
    conv = 2.0 * patches * pixels * vision.hidden_size
    parts = [*model.model.vision_tower.modules(), *model.model.multi_modal_projector.modules()]
    return linear_work(parts, patches) + Work(bf16=attention + conv)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(map(_nbytes, tensors.values()))


def _tensors(module: nn.Module) -> list[Any]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
