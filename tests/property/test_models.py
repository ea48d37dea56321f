"""What must hold of the network whatever goes in: images and prompts do not touch each other, padding is no input."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from profiles import examples
from random_models import PATCH, VARIANTS, Batch, random_batch, random_llava
from torch import Tensor

from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.padded import new_cache
from pixtral.ops.kv_cache import Packing

GRIDS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
PROMPTS = st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=3), min_size=1, max_size=4)
NAMES = st.sampled_from(["pixtral", "one_kv_head", "inner_layer"])
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def model_of(name: str) -> LlavaForConditionalGeneration:
    return random_llava(VARIANTS[name]).requires_grad_(False)


def make_images(grids: Sequence[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, h * PATCH, w * PATCH, generator=generator) for h, w in grids]


@given(NAMES, GRIDS)
@example("pixtral", [(16, 1600 // PATCH), (1, 1)])
def test_images_together_are_images_alone(name: str, grids: list[tuple[int, int]]) -> None:
    model, images = model_of(name), make_images(grids)
    together = model.encode_images(images)
    assert [len(x) for x in together] == [h * w for h, w in grids]
    for image, features in zip(images, together, strict=True):
        torch.testing.assert_close(features, model.encode_images([image])[0], **CLOSE)


@given(GRIDS, st.integers(0, 9))
def test_an_image_does_not_see_its_neighbours(grids: list[tuple[int, int]], which: int) -> None:
    model, images = model_of("pixtral"), make_images(grids)
    which %= len(images)
    before = model.encode_images(images)
    images[which] = 5 * torch.randn_like(images[which])
    after = model.encode_images(images)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) == (i != which)


@given(GRIDS, st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 1e4, float("nan")]))
def test_pixels_outside_an_image_do_not_matter(
    grids: list[tuple[int, int]], below: int, beside: int, filling: float
) -> None:
    """Neither the padding of a batch nor rests smaller than a patch; not even if they are NaN."""
    model, images = model_of("pixtral"), make_images(grids)
    rest_h, rest_w = below % PATCH, beside % PATCH
    sizes = torch.tensor([image.shape[1:] for image in images]) + torch.tensor([rest_h, rest_w])
    height, width = sizes.amax(0).tolist()
    batch = torch.full((len(images), 3, height + below, width + beside), filling)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    features = model.get_image_features(batch, image_sizes=sizes).pooler_output
    for a, b in zip(features, model.encode_images(images), strict=True):
        assert torch.equal(a, b)


def logits_alone(
    model: LlavaForConditionalGeneration, batch: Batch, grids: Sequence[Sequence[tuple[int, int]]]
) -> list:
    """Each prompt by itself, without padding, through the packed interface."""
    images = (
        [] if batch.pixel_values is None else list(zip(batch.pixel_values, batch.image_sizes.tolist(), strict=True))
    )
    out = []
    for ids, mask, own in zip(batch.input_ids, batch.attention_mask, grids, strict=True):
        mine, images = images[: len(own)], images[len(own) :]
        features = model.encode_images([pixels[:, :h, :w] for pixels, (h, w) in mine])
        embeds = model.embed(ids[mask.bool()], features)
        n = len(embeds)
        hidden = model.forward_packed(embeds, torch.arange(n), Packing.full([n], causal=True))
        out.append(model.logits(hidden))
    return out


@given(NAMES, PROMPTS, st.sampled_from(["left", "right"]), st.booleans(), st.booleans())
@examples(40)
def test_a_batch_is_its_prompts_one_at_a_time(
    name: str, grids: list[list[tuple[int, int]]], side: str, use_cache: bool, attentions: bool
) -> None:
    model = model_of(name)
    batch = random_batch(model.config, grids, side=side)
    output = model(**batch.inputs(use_cache=use_cache, output_attentions=attentions))
    for row, mask, alone in zip(
        output.logits, batch.attention_mask.bool(), logits_alone(model, batch, grids), strict=True
    ):
        torch.testing.assert_close(row[mask], alone, **CLOSE)
        assert not row[~mask].any()


@given(NAMES, PROMPTS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
@examples(40)
def test_any_split_of_prompts_gives_the_same(
    name: str, grids: list[list[tuple[int, int]]], chunks: list[int], ragged: bool
) -> None:
    """Prompts taken in pieces of any size, with images cut anywhere, are prompts taken whole."""
    model = model_of(name)
    batch = random_batch(model.config, grids)
    whole = logits_alone(model, batch, grids)
    images = (
        []
        if batch.pixel_values is None
        else model.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes).pooler_output
    )
    real = batch.attention_mask.bool()
    embeds = torch.split(model.embed(batch.input_ids[real], images), real.sum(1).tolist())
    cache = new_cache(model.text_config, len(embeds), 1, embeds[0])
    step = 0
    while cache.lengths != [len(x) for x in embeds]:
        size = [chunks[(step + ragged * i) % len(chunks)] for i in range(len(embeds))]
        lens = [min(n, len(x) - done) for n, x, done in zip(size, embeds, cache.lengths, strict=True)]
        starts = list(cache.lengths)
        rows = [x[done : done + n] for x, done, n in zip(embeds, starts, lens, strict=True)]
        places = [torch.arange(done, done + n) for done, n in zip(starts, lens, strict=True)]
        hidden = model.forward_packed(torch.cat(rows), torch.cat(places), cache.packing(lens), cache)
        for found, expected, done, n in zip(torch.split(model.logits(hidden), lens), whole, starts, lens, strict=True):
            torch.testing.assert_close(found, expected[done : done + n], **CLOSE)
        step += 1


@given(PROMPTS, st.sampled_from(["left", "right"]), st.lists(st.integers(1, 3), min_size=1, max_size=3))
@examples(25)
def test_steps_of_the_padded_skin_are_one_forward(
    grids: list[list[tuple[int, int]]], side: str, steps: list[int]
) -> None:
    """Prompt, then further tokens with past_key_values, on either padding side: as if each were one prompt."""
    model = model_of("pixtral")
    batch = random_batch(model.config, grids, side=side)
    real = batch.attention_mask.bool()
    more = torch.randint(20, 70, (len(grids), sum(steps)), generator=torch.Generator().manual_seed(1))
    output = model(**batch.inputs())
    found, mask = [], batch.attention_mask
    for ids in torch.split(more, steps, dim=1):
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        output = model(input_ids=ids, attention_mask=mask, past_key_values=output.past_key_values)
        found.append(output.logits)
    for row, (ids, keep) in enumerate(zip(batch.input_ids, real, strict=True)):
        whole = torch.cat([ids[keep], more[row]])
        images = None if batch.pixel_values is None else batch.pixel_values
        before = sum(map(len, grids[:row]))
        own = slice(before, before + len(grids[row]))
        pixels = (
            {}
            if images is None or not grids[row]
            else {"pixel_values": images[own], "image_sizes": batch.image_sizes[own]}
        )
        expected = model(input_ids=whole[None], **pixels).logits[0, -sum(steps) :]
        torch.testing.assert_close(torch.cat(found, 1)[row], expected, **CLOSE)


@given(PROMPTS, st.integers(1, 3))
@examples(20)
def test_the_loss_does_not_depend_on_padding(grids: list[list[tuple[int, int]]], extra: int) -> None:
    model = model_of("pixtral")
    losses = []
    for side in ("left", "right"):
        batch = random_batch(model.config, grids, side=side)
        for more in (0, extra):
            pad = (more, 0) if side == "left" else (0, more)
            ids, mask = (torch.nn.functional.pad(x, pad) for x in (batch.input_ids, batch.attention_mask))
            labels = ids.masked_fill(mask == 0, -100)
            inputs = Batch(ids, mask, batch.pixel_values, batch.image_sizes).inputs(labels=labels)
            losses.append(model(**inputs).loss)
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(4), rtol=1e-5, atol=1e-5)
    count, total = 0, 0.0
    batch = random_batch(model.config, grids)
    for ids, keep, logits in zip(
        batch.input_ids, batch.attention_mask.bool(), logits_alone(model, batch, grids), strict=True
    ):
        total += torch.nn.functional.cross_entropy(logits[:-1], ids[keep][1:], reduction="sum").item()
        count += int(keep.sum()) - 1
    torch.testing.assert_close(losses[0].item(), total / count, rtol=1e-5, atol=1e-5)
