"""The embedded model's tokenizer: a small subset of Mistral's Tekken vocabulary in its order.

Kept are the 256 bytes (so any Unicode text encodes), the merges that the words of the generated conversations need
(each such word is then split exactly as by all 150,000 entries of the Tekken file), and the first ranks of Tekken
until the wanted size is reached. Ranks are renumbered in their old order; mistral-common
reads the size from the file (``default_vocab_size``).
"""

from __future__ import annotations

import base64
import importlib.resources
import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
"""Tekken v3's special tokens; the position in this tuple is the id, as in Pixtral-12B."""

NUM_SPECIAL = 32
"""Ids below this one are special (the unnamed ones are fillers, as mistral-common makes them)."""

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the image processor, as in Pixtral-12B."""


def full_tekken() -> dict[str, Any]:
    """The Tekken file of Pixtral-12B, which the mistral-common package carries."""
    source = importlib.resources.files("mistral_common") / "data" / "tekken_240911.json"
    loaded: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    return loaded


def _merge_trace(piece: bytes, ranks: dict[bytes, int]) -> set[bytes]:
    """Every token of several bytes that byte-pair encoding forms while it encodes `piece`."""
    parts, formed = [piece[i : i + 1] for i in range(len(piece))], set[bytes]()
    while len(parts) > 1:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        formed.add(parts[at])
    return formed


def truncated_tekken(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """A tekken.json (as a dict) of `vocab_size` ids, special ones included, that keeps the words of `texts` whole.

    Raises ValueError when `vocab_size` is too small for the bytes and the merges of `texts`.
    """
    full = full_tekken()
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in full["vocab"]]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    split = pre_tokenizers.Split(Regex(full["config"]["pattern"]), behavior="isolated", invert=False)
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    keep = set(range(256))
    for piece in pieces:
        keep |= {ranks[token] for token in _merge_trace(piece.encode(), ranks)}
    room = vocab_size - NUM_SPECIAL
    if len(keep) > room:
        raise ValueError(
            f"found vocab_size={vocab_size}; the texts need at least {len(keep) + NUM_SPECIAL} ids: "
            "give a larger vocab_size or fewer texts"
        )
    for rank in range(256, len(tokens)):
        if len(keep) >= room:
            break
        keep.add(rank)
    vocab = [{**full["vocab"][old], "rank": new} for new, old in enumerate(sorted(keep))]
    config = {
        **full["config"],
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": vocab_size,
        "default_num_special_tokens": NUM_SPECIAL,
    }
    special = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(SPECIAL_TOKENS)]
    return {"config": config, "vocab": vocab, "special_tokens": special, "image": full["image"]}


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, the alphabet in which tokenizer.json writes byte-level tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + n) for n, b in enumerate(hidden)}}


def huggingface_tokenizer(tekken: dict[str, Any]) -> Tokenizer:
    """The same tokenizer as a `tokenizers.Tokenizer`, whose file is tokenizer.json."""
    alphabet = byte_alphabet()
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"]]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    spell = {token: "".join(alphabet[b] for b in token) for token in tokens}
    merges: list[tuple[str, str]] = []
    for token in tokens:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [(spell[a], spell[b]) for a, b in sorted(known, key=lambda ab: (ranks[ab[0]], ranks[ab[1]]))]
    special = [entry["token_str"] for entry in tekken["special_tokens"]]
    special += [f"<SPECIAL_{i}>" for i in range(len(special), NUM_SPECIAL)]
    vocab = {token: i for i, token in enumerate(special)} | {spell[t]: NUM_SPECIAL + r for t, r in ranks.items()}
    tokenizer = Tokenizer(BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tekken["config"]["pattern"]), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def write_tokenizer(folder: pathlib.Path, texts: Iterable[str], vocab_size: int) -> None:
    """Write every file of the tokenizer and the processor, for both layouts, into `folder`."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

    folder.mkdir(parents=True, exist_ok=True)
    tekken = truncated_tekken(texts, vocab_size)
    (folder / "tekken.json").write_text(json.dumps(tekken, indent=1) + "\n", encoding="utf-8")
    huggingface_tokenizer(tekken).save(str(folder / "tokenizer.json"))
    template = convert_tokenizer_to_chat_template(str(folder / "tekken.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", **special},
        "special_tokens_map.json": special,
        "preprocessor_config.json": {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 1024},
            "patch_size": {"height": 16, "width": 16},
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
            "resample": 3,
        },
        "processor_config.json": {"processor_class": "PixtralProcessor", "patch_size": 16},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
