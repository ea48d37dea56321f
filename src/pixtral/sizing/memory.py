"""Memory of a model: its weights by part, quantizing while loading, and the work space of images and prompts.

Weights are counted on the network on `meta`. For the work space the network is run on tensors that have sizes and no
values, and what is alive at once is added up: this counts what the code does instead of repeating it in formulas. Two
blocks of tower and decoder stand for all: every further one needs the same memory after it was freed.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixtral.checkpoints import names
from pixtral.checkpoints.fitting import tensor_sizes
from pixtral.checkpoints.opening import build_empty
from pixtral.checkpoints.plan import Wanted, wanted_by
from pixtral.configuration import LlavaConfig
from pixtral.engine.model import PREFILL_TOKENS
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.ops.kv_cache import KVCache
from pixtral.quantization.base import BLOCK_BYTES
from pixtral.quantization.groupwise import GroupwiseQuantizer
from pixtral.sizing.described_model import DescribedModel
from pixtral.sizing.result import PartSize

# Live tensors are not all: freed memory is fragmented, and the native kernels need some of their own. Measured on
# Linux with the C library's allocator, see tests/unit/sizing.
_OVERHEAD = 1.15
_KERNELS = 8_000_000

_EMBEDDINGS = "embed_tokens.weight"
_TITLES = {
    names.VISION: "vision tower",
    names.PROJECTOR: "projector",
    "embeddings": "embeddings",
    names.TEXT: "decoder",
    names.HEAD: "output layer",
}


def part_sizes(described: DescribedModel) -> tuple[PartSize, ...]:
    """The weights of each part, in the order in which the parts run."""
    model, wanted = _network(described)
    formats: dict[str, dict[str, None]] = {part: {} for part in _TITLES}
    counts, sizes = dict.fromkeys(_TITLES, 0), dict.fromkeys(_TITLES, 0)
    plain = str(described.dtype).removeprefix("torch.")
    for name, size in tensor_sizes(model, wanted, described.dtype, described.quantizer).items():
        layer = wanted.layers.get(name)
        part = "embeddings" if name.endswith(_EMBEDDINGS) else names.part_of(name)
        sizes[part] += size
        if layer is None:
            counts[part] += model.get_parameter(name).numel()
            formats[part].setdefault(plain)
        else:
            assert described.quantizer is not None
            counts[part] += _num_weights(layer)
            formats[part].setdefault(described.quantizer.describe(layer))
    in_file = described.mapped and described.quantizer is not None and described.quantizer.maps(_EMBEDDINGS)
    return tuple(
        PartSize(
            title,
            counts[part],
            ", ".join(sorted(formats[part], key=lambda words: words == plain)),
            sizes[part],
            0 if part == "embeddings" and in_file else sizes[part],
        )
        for part, title in _TITLES.items()
        if counts[part]
    )


def loading_bytes(described: DescribedModel) -> int:
    """Memory beside the weights while layers are quantized: a block of the original, and what is made of it."""
    if described.quantizer is None or described.quantizer.stored:
        return 0
    sizes = [
        described.quantizer.work_bytes(layer) + min(_num_weights(layer) * described.dtype.itemsize, BLOCK_BYTES)
        for layer in _network(described)[1].layers.values()
    ]
    return max(sizes, default=0)


@dataclasses.dataclass(frozen=True)
class WorkSpace:
    """Peak bytes of activations while images are encoded, and while a prompt is read."""

    images: int
    prompt: int


def work_space(
    described: DescribedModel, sizes: Sequence[tuple[int, int]], tokens: int, batch: int, cache: torch.dtype
) -> WorkSpace:
    """The work space of one call of the model.

    Args:
        described: the model.
        sizes: (height, width) in pixels of each conversation's images, after resizing.
        tokens: of each conversation's prompt.
        batch: conversations.
        cache: dtype of keys and values.
    """
    config = _shallow(described.config)
    model = build_empty(LlavaForConditionalGeneration, config)
    if isinstance(described.quantizer, GroupwiseQuantizer):
        described.quantizer.swap(model, described.dtype)
    with torch.no_grad(), FakeTensorMode():
        _without_values(model, described.dtype)
        images = _counted(model, lambda live: _encode(model.eval(), sizes, tokens, batch)) if sizes else 0
        prompt = _counted(model, lambda live: _prefill(model.eval(), config, tokens, batch, cache, live))
    unpacked = _unpacked_bytes(described)
    return WorkSpace(*(int(_OVERHEAD * peak) + _KERNELS + unpacked if peak else 0 for peak in (images, prompt)))


def _shallow(config: LlavaConfig) -> LlavaConfig:
    """Two blocks of tower and decoder each; the whole tower where hidden states of inner blocks are kept."""
    text = dataclasses.replace(config.text_config, num_hidden_layers=min(config.text_config.num_hidden_layers, 2))
    vision = config.vision_config
    if config.vision_feature_layer in (-1, vision.num_hidden_layers):
        vision = dataclasses.replace(vision, num_hidden_layers=min(vision.num_hidden_layers, 2))
        return dataclasses.replace(config, text_config=text, vision_config=vision, vision_feature_layer=-1)
    return dataclasses.replace(config, text_config=text)


def _without_values(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace tensors on `meta` by tensors on the CPU, which take no memory inside of FakeTensorMode."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            new = made.setdefault(
                id(parameter), nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False)
            )
            module.register_parameter(name, new)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _encode(model: LlavaForConditionalGeneration, sizes: Sequence[tuple[int, int]], tokens: int, batch: int) -> object:
    """All images of all conversations in one pass, and their features put into the embeddings of the prompts."""
    channels = model.config.vision_config.num_channels
    pixels = [torch.empty(channels, height, width) for height, width in [*sizes] * batch]
    features = torch.cat(model.encode_images(pixels))
    embeds = [model.embed(torch.zeros(tokens, dtype=torch.int64)) for _ in range(batch)]
    return features, [one.clone() for one in embeds]


def _prefill(
    model: LlavaForConditionalGeneration,
    config: LlavaConfig,
    tokens: int,
    batch: int,
    kind: torch.dtype,
    live: _LiveMemory,
) -> object:
    """A prompt as the engine reads it: embeddings of all of it, activations of one step."""
    text = config.text_config
    assert text.head_dim is not None
    with live.paused():
        shape = (text.num_hidden_layers, text.num_key_value_heads, text.head_dim)
        cache = KVCache(*shape, batch, tokens, kind, "cpu")
    embeds = torch.cat([model.embed(torch.zeros(tokens, dtype=torch.int64)) for _ in range(batch)])
    done = 0
    while done < len(embeds):
        rows = embeds[done : done + PREFILL_TOKENS].clone()
        q_lens = _shares(len(rows), [tokens - length for length in cache.lengths])
        wanted = torch.arange(min(batch, len(rows)))
        hidden = model.forward_packed(rows, torch.arange(len(rows)), cache.packing(q_lens), cache, wanted)
        done += len(rows)
    return model.logits(hidden).float()


def _shares(rows: int, wanted: Sequence[int]) -> list[int]:
    """Rows of each sequence in a step of `rows`, given to one after another."""
    shares = []
    for most in wanted:
        shares.append(min(most, rows))
        rows -= shares[-1]
    return shares


def _unpacked_bytes(described: DescribedModel) -> int:
    """Dequantized weights that quantized layers make while they compute."""
    text = described.config.text_config
    largest = text.hidden_size * text.intermediate_size * described.dtype.itemsize
    config: Any = None if described.quantizer is None else described.quantizer.config
    if isinstance(described.quantizer, GroupwiseQuantizer):
        return largest if config.activations == "bf16" else 0
    return largest if config is not None else 0


def _counted(model: nn.Module, run: Callable[[_LiveMemory], object]) -> int:
    """Peak of live bytes while `run` runs, beside the model."""
    live = _LiveMemory((*model.parameters(), *model.buffers()))
    with live:
        kept = run(live)
    del kept
    return live.peak


class _LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of tensors that operations make, from their creation until they are freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Tensors made inside are not counted."""
        self._paused = True
        yield
        self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        if not self._paused:
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _network(described: DescribedModel) -> tuple[nn.Module, Wanted]:
    """The network on `meta` with its layers swapped, and the tensors that it needs."""
    model = build_empty(LlavaForConditionalGeneration, described.config)
    return model, wanted_by(model, described.dtype, described.quantizer)


def _num_weights(layer: nn.Module) -> int:
    """Number of weights of a quantized layer."""
    rows, columns = layer.out_features, layer.in_features
    assert isinstance(rows, int) and isinstance(columns, int)
    return rows * columns
