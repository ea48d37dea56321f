"""Plans as tensors, and the cache behind the blocks."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from random_models import llava_dict

from pixtral.configuration import LlavaConfig
from pixtral.engine.block_manager import BlockManager
from pixtral.engine.model import PagedKVCache
from pixtral.engine.model_runner import SlotTable, Span, pack, spans_of, wanted_logits
from pixtral.engine.request import Request, SchedulerOutput
from pixtral.engine.sampling_params import SamplingParams

CPU = torch.device("cpu")


def request(length, computed, blocks=(), new=(), draft=()):
    made = Request(SamplingParams(), tuple(range(length)), length, 99)
    made.num_computed = computed
    made.blocks += blocks
    made.new_ids += new
    made.draft += draft
    return made


class Echo:
    """A model whose logits are its embeddings."""

    text_config = SimpleNamespace(vocab_size=1)

    def forward_packed(self, embeds, positions, packing, cache, wanted):
        return embeds if wanted is None else embeds[wanted]

    def logits(self, hidden):
        return hidden


def test_slots_follow_the_blocks():
    blocks = [3, 4]
    table = SlotTable(blocks, 4, CPU)
    assert table.upto(6) == slice(12, 18) and table.between(2, 6).tolist() == [14, 15, 16, 17]
    blocks += [5]
    assert table.upto(9) == slice(12, 21)
    blocks += [0, 9, 10]
    assert table.upto(14).tolist() == [*range(12, 24), 0, 1]
    assert table.slot(17) == 37 and table.between(12, 21).tolist() == [0, 1, 2, 3, 36, 37, 38, 39, 40]


def test_a_step_of_everything():
    """A decoding request, a part of a prompt, a draft, and a prompt's end."""
    decoding = request(5, 5, [0, 1], new=[7])
    part = request(9, 2, [2, 3, 4])
    draft = request(3, 4, [6, 5], new=[7, 8], draft=[9, 9])
    end = request(4, 1, [7])
    spans = spans_of(SchedulerOutput({decoding: 1, part: 4, draft: 3, end: 3}))
    assert [(span.start, span.end, span.num_logits) for span in spans] == [(5, 6, 1), (2, 6, 0), (4, 7, 3), (1, 4, 1)]
    tables = [SlotTable(span.request.blocks, 4, CPU) for span in spans]
    positions, packing = pack(spans, tables, CPU)
    assert positions.tolist() == [5, 2, 3, 4, 5, 4, 5, 6, 1, 2, 3]
    assert packing.slots.tolist() == [5, 10, 11, 12, 13, 20, 21, 22, 29, 30, 31]
    assert (packing.q_lens, packing.kv_lens) == ((1, 4, 3, 3), (6, 6, 7, 4))
    assert packing.tables[:2] == (slice(0, 6), slice(8, 14)) and packing.tables[2].tolist() == [
        24,
        25,
        26,
        27,
        20,
        21,
        22,
    ]
    rows = torch.arange(11.0)[:, None]
    assert wanted_logits(Echo(), rows, positions, packing, None, spans).flatten().tolist() == [0, 5, 6, 7, 10]
    assert wanted_logits(Echo(), rows[:1], positions[:1], packing, None, spans[:1]).tolist() == [[0]]
    assert wanted_logits(Echo(), rows[:4], positions[:4], packing, None, spans[1:2]).shape == (0, 1)


def test_logits_that_are_held_are_not_wanted_again():
    ahead = request(3, 6, new=[7, 8], draft=[9, 9, 9])  # held behind 8 and its first draft token
    (span,) = spans_of(SchedulerOutput({ahead: 2}))
    assert span == Span(ahead, 6, 8, 2)


def test_the_cache_grows_with_the_pool_and_keeps_what_it_holds():
    config = LlavaConfig.from_dict(llava_dict()).text_config
    pool = BlockManager(2)
    cache = PagedKVCache(config, pool, torch.float32, CPU)
    for tensor in cache.layers[1].tensors:
        tensor.normal_()
    old = [tensor.clone() for tensor in cache.layers[1].tensors]
    pool.grow(3)
    cache.follow()
    assert all(tensor.shape[0] == 80 for layer in cache.layers for tensor in layer.tensors)
    assert all(new[:32].equal(before) for new, before in zip(cache.layers[1].tensors, old, strict=True))
    cache.copy_block(1, 4)
    assert all(new[64:80].equal(before[16:32]) for new, before in zip(cache.layers[1].tensors, old, strict=True))
    cache.advance([3])
    cache.follow()
    assert cache.layers[1].keys[:32].equal(old[0])
