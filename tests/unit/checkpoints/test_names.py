"""The name tables: bijective, complete for every published model, and the rotary row orders inverse to each other."""

from __future__ import annotations

import functools

import pytest
import torch
from checkpoint_files import interleave, native_name
from hypothesis import given
from hypothesis import strategies as st

from pixtral.checkpoints import names
from pixtral.checkpoints.config import KINDS, LLAVA
from pixtral.checkpoints.names import SCHEMES, Scheme
from pixtral.checkpoints.opening import build_empty
from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.models import NETWORKS

MODELS = {  # tower layers, decoder layers, projector bias
    "12B": (24, 40, True),
    "Large": (40, 88, False),
}
TITLES = [scheme.title for scheme in SCHEMES]


@functools.cache
def all_names(model: str) -> list[str]:
    """Every parameter's name of a published model, from the modules themselves."""
    tower, decoder, bias = MODELS[model]
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=16, intermediate_size=16, num_attention_heads=1, num_hidden_layers=tower
        ),
        text_config=MistralConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=decoder,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        ),
        multimodal_projector_bias=bias,
    )
    return [name for name, _ in build_empty(NETWORKS[LLAVA.architecture], config).named_parameters()]


@pytest.mark.parametrize("scheme", SCHEMES, ids=TITLES)
@pytest.mark.parametrize("model", MODELS)
def test_every_name_goes_there_and_back(scheme: Scheme, model: str) -> None:
    canonical = all_names(model)
    tower, decoder, bias = MODELS[model]
    assert len(canonical) == 9 * tower + 2 + 9 * decoder + 3 + (4 if bias else 2)
    native = [scheme.spell(name) for name in canonical]
    kept = [name for name, spelled in zip(canonical, native, strict=True) if spelled is not None]
    assert {names.part_of(name) for name in canonical} - {names.part_of(name) for name in kept} == (
        set(names.PARTS) - scheme.prefixes.keys()
    )
    spelled = [name for name in native if name is not None]
    assert len(set(spelled)) == len(kept)  # injective
    assert [scheme.canonical(name) for name in spelled] == kept  # inverse
    assert all(scheme.spell(name) == other for name, other in zip(kept, spelled, strict=True))  # idempotent


@pytest.mark.parametrize("scheme", SCHEMES, ids=TITLES)
def test_a_files_scheme_is_recognised_by_its_names(scheme: Scheme) -> None:
    spelled = [name for name in map(scheme.spell, all_names("12B")) if name is not None]
    assert names.detect(spelled) is scheme
    assert names.detect(list(reversed(spelled))) is scheme


@pytest.mark.parametrize("model", MODELS)
def test_native_names_are_those_of_the_conversion_by_replacement(model: str) -> None:
    for name in all_names(model):
        assert names.MISTRAL.spell(name) == native_name(name)


def test_some_names_to_the_letter() -> None:
    canonical = "model.language_model.layers.39.self_attn.q_proj.weight"
    assert names.MISTRAL.spell(canonical) == "layers.39.attention.wq.weight"
    assert names.HF.spell(canonical) == "language_model.model.layers.39.self_attn.q_proj.weight"
    assert names.HF_TEXT.spell(canonical) == "model.layers.39.self_attn.q_proj.weight"
    assert names.HF_VISION.spell(canonical) is None
    assert names.HF.canonical("language_model.lm_head.weight") == "lm_head.weight"
    assert names.MISTRAL.canonical("vision_language_adapter.w_out.bias") == "model.multi_modal_projector.linear_2.bias"
    assert names.MISTRAL.canonical("vision_encoder.transformer.layers.7.feed_forward.w2.weight") == (
        "model.vision_tower.transformer.layers.7.feed_forward.down_proj.weight"
    )


@pytest.mark.parametrize(
    "name",
    [
        "layers.01.attention.wq.weight",
        "layers.{}.attention.wq.weight",
        "layers.attention.wq.weight",
        "layers.1.2.attention.wq.weight",
        "layers.-1.attention.wq.weight",
        "layers.\u0661.attention.wq.weight",
        "layers.1.attention.wq",
        "layers.1.attention.wq.weight.",
        "xlayers.1.attention.wq.weight",
        "tok_embeddings.3.weight",
        "",
    ],
)
def test_a_name_that_is_nearly_right_is_unknown(name: str) -> None:
    assert names.MISTRAL.canonical(name) is None


def test_prefixes_of_one_family_may_be_mixed() -> None:
    scheme, found = names.canonical_names(
        ["language_model.model.norm.weight", "model.vision_tower.ln_pre.weight", "lm_head.weight", "oddity"]
    )
    assert scheme in (names.HF, names.CANONICAL)
    assert list(found.values()) == [
        "model.language_model.norm.weight",
        "model.vision_tower.ln_pre.weight",
        "lm_head.weight",
        None,
    ]


def test_leftovers_of_old_releases_are_known() -> None:
    assert names.is_derived("language_model.model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not names.is_derived("language_model.model.layers.3.self_attn.q_proj.weight")


def test_kinds_name_their_own_parameters() -> None:
    for kind in KINDS:
        assert set(kind.own.prefixes) == set(kind.published.prefixes)


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_the_two_row_orders_are_inverse(heads: int, half: int, columns: int, seed: int) -> None:
    weight = torch.randn(heads * 2 * half, columns, generator=torch.Generator().manual_seed(seed))
    native = names.to_interleaved(weight, heads)
    assert torch.equal(native, interleave(weight, heads))
    assert torch.equal(names.to_half_split(native, heads), weight)
    assert torch.equal(names.to_interleaved(names.to_half_split(weight, heads), heads), weight)


def test_the_row_order_fits_the_rotation() -> None:
    """Rotating neighbours (Mistral) and rotating halves (canonical) give the same attention scores."""
    heads, dim, columns = 2, 8, 5
    x, native = torch.randn(columns), torch.randn(heads * dim, columns)
    angle = torch.randn(dim // 2)
    pairs = torch.view_as_complex((native @ x).view(heads, dim // 2, 2).contiguous())
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle))
    first, second = (names.to_half_split(native, heads) @ x).view(heads, 2, dim // 2).unbind(1)
    found = torch.stack(
        (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1
    )
    torch.testing.assert_close(found, expected)


def test_which_parameters_are_rotated() -> None:
    counts = {name: names.rotary_heads(name, 16, 32, 8) for name in all_names("12B")}
    assert sum(count is not None for count in counts.values()) == 2 * (24 + 40)
    assert counts["model.vision_tower.transformer.layers.0.attention.k_proj.weight"] == 16
    assert counts["model.language_model.layers.0.self_attn.q_proj.weight"] == 32
    assert counts["model.language_model.layers.0.self_attn.k_proj.weight"] == 8
