"""Parameter names: exact, bijective tables between the published namings and the modules', and the q/k row orders.

A model has four parts. Inside a part the leaves have two spellings (Mistral's and Hugging Face's, the tables below);
a *scheme* says which spelling a family of files uses and what prefix each part carries. `{}` stands for the layer.
Canonical names are those of LlavaForConditionalGeneration's modules: the scheme `CANONICAL`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import Tensor, nn

VISION, PROJECTOR, TEXT, HEAD = PARTS = ("vision", "projector", "text", "head")

# part -> ((Mistral's leaf, canonical leaf), ...); sources: mistral-inference's modules, transformers' conversion script
_LEAVES: dict[str, tuple[tuple[str, str], ...]] = {
    VISION: (
        ("patch_conv.weight", "patch_conv.weight"),
        ("ln_pre.weight", "ln_pre.weight"),
        ("transformer.layers.{}.attention_norm.weight", "transformer.layers.{}.attention_norm.weight"),
        ("transformer.layers.{}.attention.wq.weight", "transformer.layers.{}.attention.q_proj.weight"),
        ("transformer.layers.{}.attention.wk.weight", "transformer.layers.{}.attention.k_proj.weight"),
        ("transformer.layers.{}.attention.wv.weight", "transformer.layers.{}.attention.v_proj.weight"),
        ("transformer.layers.{}.attention.wo.weight", "transformer.layers.{}.attention.o_proj.weight"),
        ("transformer.layers.{}.ffn_norm.weight", "transformer.layers.{}.ffn_norm.weight"),
        ("transformer.layers.{}.feed_forward.w1.weight", "transformer.layers.{}.feed_forward.gate_proj.weight"),
        ("transformer.layers.{}.feed_forward.w2.weight", "transformer.layers.{}.feed_forward.down_proj.weight"),
        ("transformer.layers.{}.feed_forward.w3.weight", "transformer.layers.{}.feed_forward.up_proj.weight"),
    ),
    PROJECTOR: (
        ("w_in.weight", "linear_1.weight"),
        ("w_in.bias", "linear_1.bias"),
        ("w_out.weight", "linear_2.weight"),
        ("w_out.bias", "linear_2.bias"),
    ),
    TEXT: (
        ("tok_embeddings.weight", "embed_tokens.weight"),
        ("layers.{}.attention_norm.weight", "layers.{}.input_layernorm.weight"),
        ("layers.{}.attention.wq.weight", "layers.{}.self_attn.q_proj.weight"),
        ("layers.{}.attention.wk.weight", "layers.{}.self_attn.k_proj.weight"),
        ("layers.{}.attention.wv.weight", "layers.{}.self_attn.v_proj.weight"),
        ("layers.{}.attention.wo.weight", "layers.{}.self_attn.o_proj.weight"),
        ("layers.{}.ffn_norm.weight", "layers.{}.post_attention_layernorm.weight"),
        ("layers.{}.feed_forward.w1.weight", "layers.{}.mlp.gate_proj.weight"),
        ("layers.{}.feed_forward.w2.weight", "layers.{}.mlp.down_proj.weight"),
        ("layers.{}.feed_forward.w3.weight", "layers.{}.mlp.up_proj.weight"),
        ("norm.weight", "norm.weight"),
    ),
    HEAD: (("output.weight", "lm_head.weight"),),
}
_PREFIXES = {VISION: "model.vision_tower.", PROJECTOR: "model.multi_modal_projector.", TEXT: "model.language_model."}

# Tensors that old releases wrote although they follow from the configuration; skipped silently.
DERIVED = frozenset(
    {
        "vision_tower.patch_positional_embedding.inv_freq",
        "model.vision_tower.patch_positional_embedding.inv_freq",
        "patch_positional_embedding.inv_freq",
        "language_model.model.rotary_emb.inv_freq",
        "language_model.model.layers.{}.self_attn.rotary_emb.inv_freq",
        "model.layers.{}.self_attn.rotary_emb.inv_freq",
    }
)


@dataclass(frozen=True)
class Scheme:
    """How one family of files names its parameters.

    Args:
        title: for messages and reports.
        prefixes: part -> what stands before its leaves; a part that is not listed does not occur in such files.
        native: leaves as Mistral spells them, with q and k rows in interleaved rotary order.
    """

    title: str
    prefixes: dict[str, str]
    native: bool = False
    to_canonical: dict[str, str] = field(init=False, repr=False)
    from_canonical: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pairs = [
            (prefix + (native if self.native else canonical), _PREFIXES.get(part, "") + canonical)
            for part, prefix in self.prefixes.items()
            for native, canonical in _LEAVES[part]
        ]
        object.__setattr__(self, "to_canonical", dict(pairs))
        object.__setattr__(self, "from_canonical", {canonical: native for native, canonical in pairs})
        assert len(self.to_canonical) == len(self.from_canonical) == len(pairs), "a name table must be bijective"

    def canonical(self, name: str) -> str | None:
        """The canonical name of `name` in such a file; None if the scheme has no such name."""
        return _translate(name, self.to_canonical)

    def spell(self, canonical: str) -> str | None:
        """The name of the parameter `canonical` in such a file; None if it has none."""
        return _translate(canonical, self.from_canonical)

    def canonical_stored(self, name: str, suffixes: Collection[str]) -> str | None:
        """`canonical`, also for what a quantized layer stores: "X.codes" is to "X.weight" as the suffix to "weight"."""
        return _with_suffix(name, suffixes, self.canonical)

    def spell_stored(self, canonical: str, suffixes: Collection[str]) -> str | None:
        """`spell`, also for what a quantized layer stores."""
        return _with_suffix(canonical, suffixes, self.spell)


CANONICAL = Scheme("transformers >= 4.52, module names", {**_PREFIXES, HEAD: ""})
MISTRAL = Scheme(
    "mistral", {VISION: "vision_encoder.", PROJECTOR: "vision_language_adapter.", TEXT: "", HEAD: ""}, native=True
)
HF = Scheme(
    "transformers, as published",
    {
        VISION: "vision_tower.",
        PROJECTOR: "multi_modal_projector.",
        TEXT: "language_model.model.",
        HEAD: "language_model.",
    },
)
HF_BASE = Scheme(
    "transformers, LlavaModel",
    {VISION: "vision_tower.", PROJECTOR: "multi_modal_projector.", TEXT: "language_model.", HEAD: ""},
)
HF_TEXT = Scheme("transformers, MistralForCausalLM", {TEXT: "model.", HEAD: ""})
HF_TEXT_BASE = Scheme("transformers, MistralModel", {TEXT: ""})
HF_VISION = Scheme("transformers, PixtralVisionModel", {VISION: ""})
SCHEMES = (HF, CANONICAL, MISTRAL, HF_TEXT, HF_VISION, HF_BASE, HF_TEXT_BASE)


_WHOLE = (HF, CANONICAL, HF_BASE)  # programs that save by hand mix the prefixes of these three


def detect(names: Collection[str], suffixes: Collection[str] = ()) -> Scheme:
    """The scheme that knows most of `names`; the first of `SCHEMES` among equals."""
    return max(SCHEMES, key=lambda one: sum(one.canonical_stored(name, suffixes) is not None for name in names))


def canonical_names(names: Collection[str], suffixes: Collection[str] = ()) -> tuple[Scheme, dict[str, str | None]]:
    """The scheme of a file, and the canonical name (None: unknown) of each of its names.

    Args:
        names: in the file.
        suffixes: under which quantized layers store tensors beside or in the place of "weight".
    """
    scheme = detect(names, suffixes)
    family = (scheme, *_WHOLE) if scheme in _WHOLE else (scheme,)
    found = {name: next(filter(None, (one.canonical_stored(name, suffixes) for one in family)), None) for name in names}
    return scheme, found


def is_derived(name: str) -> bool:
    """Whether `name` is a tensor that follows from the configuration and is skipped."""
    return _pattern(name)[0] in DERIVED


def part_of(canonical: str) -> str:
    """The part of the model that a canonical name belongs to."""
    return next((part for part, prefix in _PREFIXES.items() if canonical.startswith(prefix)), HEAD)


def tied_groups(model: nn.Module) -> dict[str, list[str]]:
    """Parameter name -> the names of all parameters that are the same tensor, itself included, in the model's order."""
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    return {name: group for group in same.values() for name in group}


def rotary_heads(canonical: str, vision_heads: int, query_heads: int, key_heads: int) -> int | None:
    """How many heads the rows of a q or k projection hold; None for every other parameter."""
    if canonical.endswith((".q_proj.weight", ".k_proj.weight")):
        if part_of(canonical) == VISION:
            return vision_heads
        return query_heads if canonical.endswith(".q_proj.weight") else key_heads
    return None


def to_half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k from interleaved rotary pairs (2i, 2i+1) to half-split ones (i, i + D/2): (heads * D, C) -> same.

    The permutation of transformers' convert_pixtral_weights_to_hf.py; exact, no arithmetic on the values.
    """
    return half_split_view(weight, heads).reshape(weight.shape)


def half_split_view(weight: Tensor, heads: int) -> Tensor:
    """`to_half_split` without the copy: (heads * D, C) -> (heads, 2, D / 2, C), a view."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2)


def to_interleaved(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `to_half_split`: (heads * D, C) -> same."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _with_suffix(name: str, suffixes: Collection[str], translate: Callable[[str], str | None]) -> str | None:
    plain = translate(name)
    if plain is not None:
        return plain
    for suffix in suffixes:
        if name.endswith("." + suffix):
            weight = translate(name.removesuffix(suffix) + "weight")
            return None if weight is None else weight.removesuffix("weight") + suffix
    return None


def _pattern(name: str) -> tuple[str, str]:
    """ "layers.12.x" -> ("layers.{}.x", "12"); names with no number, or several, or an odd one, stay as they are."""
    pieces = name.split(".")
    numbers = [i for i, piece in enumerate(pieces) if piece.isascii() and piece.isdigit()]
    if len(numbers) != 1 or str(int(pieces[numbers[0]])) != pieces[numbers[0]]:
        return name, ""
    index = pieces[numbers[0]]
    pieces[numbers[0]] = "{}"
    return ".".join(pieces), index


def _translate(name: str, table: dict[str, str]) -> str | None:
    if "{}" in name:  # not a layer
        return None
    pattern, index = _pattern(name)
    found = table.get(pattern)
    return None if found is None else found.replace("{}", index)
