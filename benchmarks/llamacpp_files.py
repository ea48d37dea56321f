"""Two files for llama.cpp at Pixtral-12B's shapes with random weights: a decoder in 4 bits, a vision tower in float16.

The decoder is what the usual Q4_K_M files hold, nearly: Q4_K everywhere, Q6_K for the output layer. Speed depends on
neither the values nor the vocabulary's words, so blocks of one shape are drawn once, and all words but the special ones
are made up. Written once, about 8 GB; needs the packages gguf and numpy. Imported by llamacpp_peer.py.
"""

from __future__ import annotations

import pathlib

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

LAYERS, WIDTH, WIDE, HEADS, KEY_HEADS, HEAD_DIM, VOCABULARY = 40, 5120, 14336, 32, 8, 128, 131072
TOWER_LAYERS, TOWER_WIDTH, TOWER_WIDE, TOWER_HEADS, PATCH, IMAGE = 24, 1024, 4096, 16, 16, 1024
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]", 13: "[IMG_END]"}
FIRST_BYTE = 1000  # the words for single bytes stand here, as in Tekken
_CONTROL, _NORMAL = 3, 1

# ggml's blocks of 256 weights: bytes of one, and where its float16 scales lie with values that keep sums small
_BLOCKS = {
    GGMLQuantizationType.Q4_K: (144, {0: 2e-4, 2: 1e-3}),
    GGMLQuantizationType.Q6_K: (210, {208: 1e-5}),
}


def write_files(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The decoder's and the tower's file, written where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder, tower = folder / "pixtral-12b-random-q4_k.gguf", folder / "pixtral-12b-random-mmproj-f16.gguf"
    for path, write in ((decoder, write_decoder), (tower, write_tower)):
        if not path.exists():
            part = path.with_suffix(".part")
            write(part)
            part.rename(path)
    return decoder, tower


def write_decoder(path: pathlib.Path, layers: int = LAYERS) -> None:
    """Mistral's decoder under the architecture name that llama.cpp has for it."""
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(1e9)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(15)
    _add_vocabulary(writer)
    drawn: dict[tuple[int, int, GGMLQuantizationType], np.ndarray] = {}
    rng = np.random.default_rng(0)

    def add(name: str, rows: int, width: int, kind: GGMLQuantizationType = GGMLQuantizationType.Q4_K) -> None:
        key = (rows, width, kind)
        if key not in drawn:
            drawn[key] = _random_blocks(rng, rows, width, kind)
        writer.add_tensor(f"{name}.weight", drawn[key], raw_dtype=kind)

    add("token_embd", VOCABULARY, WIDTH)
    add("output", VOCABULARY, WIDTH, GGMLQuantizationType.Q6_K)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        add(f"{block}.attn_q", HEADS * HEAD_DIM, WIDTH)
        add(f"{block}.attn_k", KEY_HEADS * HEAD_DIM, WIDTH)
        add(f"{block}.attn_v", KEY_HEADS * HEAD_DIM, WIDTH)
        add(f"{block}.attn_output", WIDTH, HEADS * HEAD_DIM)
        add(f"{block}.ffn_gate", WIDE, WIDTH)
        add(f"{block}.ffn_up", WIDE, WIDTH)
        add(f"{block}.ffn_down", WIDTH, WIDE)
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    _close(writer)


def write_tower(path: pathlib.Path) -> None:
    """Tower and projector, as llama.cpp's multimodal files hold them."""
    writer = GGUFWriter(str(path), "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "pixtral")
    writer.add_bool("clip.use_silu", True)
    writer.add_bool("clip.use_gelu", False)
    numbers = {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "embedding_length": TOWER_WIDTH,
        "feed_forward_length": TOWER_WIDE,
        "block_count": TOWER_LAYERS,
        "projection_dim": WIDTH,
        "attention.head_count": TOWER_HEADS,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    writer.add_file_type(1)
    rng = np.random.default_rng(1)

    def add(name: str, *shape: int, dtype: type = np.float16) -> None:
        writer.add_tensor(name, (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype))

    add("v.patch_embd.weight", TOWER_WIDTH, 3, PATCH, PATCH, dtype=np.float32)
    writer.add_tensor("v.pre_ln.weight", np.ones(TOWER_WIDTH, np.float32))
    for layer in range(TOWER_LAYERS):
        block = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"{block}.{name}.weight", TOWER_WIDTH, TOWER_WIDTH)
        add(f"{block}.ffn_gate.weight", TOWER_WIDE, TOWER_WIDTH)
        add(f"{block}.ffn_up.weight", TOWER_WIDE, TOWER_WIDTH)
        add(f"{block}.ffn_down.weight", TOWER_WIDTH, TOWER_WIDE)
        for name in ("ln1", "ln2"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(TOWER_WIDTH, np.float32))
    add("mm.1.weight", WIDTH, TOWER_WIDTH)
    add("mm.2.weight", WIDTH, WIDTH)
    for name in ("mm.1.bias", "mm.2.bias", "v.token_embd.img_break"):
        writer.add_tensor(name, np.zeros(WIDTH, np.float32))
    _close(writer)


def _add_vocabulary(writer: GGUFWriter) -> None:
    """Special tokens, one word for each byte, and made-up words."""
    words = [SPECIAL.get(index, f"<word{index}>") for index in range(VOCABULARY)]
    for byte in range(256):
        words[FIRST_BYTE + byte] = _printable(byte)
    pair = _printable(ord("a")) + _printable(ord("b"))
    words[FIRST_BYTE + 256] = pair
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("pixtral")
    writer.add_token_list(words)
    writer.add_token_types([_CONTROL if index < FIRST_BYTE else _NORMAL for index in range(VOCABULARY)])
    writer.add_token_merges([" ".join(pair)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def _printable(byte: int) -> str:
    """The letter that byte-level vocabularies write for a byte: itself where it is visible, or one from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in visible:
        return chr(byte)
    return chr(256 + [one for one in range(256) if one not in visible].index(byte))


def _random_blocks(rng: np.random.Generator, rows: int, width: int, kind: GGMLQuantizationType) -> np.ndarray:
    """(rows, bytes) of random weights whose products stay finite."""
    size, scales = _BLOCKS[kind]
    blocks = rng.integers(0, 256, (rows * width // 256, size), dtype=np.uint8)
    for place, scale in scales.items():
        blocks[:, place : place + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
