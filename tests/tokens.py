"""Tokenizer files for tests: a short cut of Mistral's Tekken in both layouts, and random conversations."""

from __future__ import annotations

import base64
import functools
import json
import pathlib
import random
import shutil
import tempfile
from typing import Any

import mistral_common
from mistral_common.tokens.tokenizers.base import SpecialTokens
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

DATA = pathlib.Path(mistral_common.__file__).parent / "data"
TEKKEN = DATA / "tekken_240911.json"  # Pixtral-12B
LARGE = DATA / "mistral_instruct_tokenizer_241114.model.v7m1"  # Pixtral-Large
# Pixtral-12B's special tokens by id.
SPECIAL = tuple(SpecialTokens(token["token_str"]).value for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS)
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEXTS = (
    "hello",
    "  two  blanks ",
    "",
    "a\nb\n\n",
    "Wörld — ça va ?",
    "日本語のテキスト",
    "🐕‍🦺 🇫🇷 e\u0301",
    "x" * 200,
    "def f(x):\n\treturn x**2  # €",
    "Ⅷ ﬁ ǅ",
    "\u200b\ufeff",
    "\x00\x01\t",
    "1234567890 3.14",
    "[IMG]",
    "</s>",
    "<s>[INST]hi[/INST]",
    "[IM",
    "it's  isn't 'll",
    "مرحبا بالعالم",
    "\ufffd",
    "A" * 50 + "[IMG_BREAK]",
)

_folders = tempfile.TemporaryDirectory(prefix="pixtral-tests-")


@functools.cache
def small_tekken(size: int = 3000, specials: tuple[str, ...] = SPECIAL) -> pathlib.Path:
    """A folder with the tekken.json of Pixtral-12B cut to its first `size` ids, with `default_vocab_size` saying so.

    `specials` are the control tokens by id; other names or another order stand for other models.
    """
    full = json.loads(TEKKEN.read_text(encoding="utf-8"))
    count = len(specials) + 4  # the rest are fillers
    full["vocab"] = full["vocab"][: size - count]
    full["config"].update(num_vocab_tokens=size - count, default_vocab_size=size, default_num_special_tokens=count)
    full["special_tokens"] = [{"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(specials)]
    folder = pathlib.Path(tempfile.mkdtemp(dir=_folders.name))
    (folder / "tekken.json").write_text(json.dumps(full), encoding="utf-8")
    return folder


@functools.cache
def small_hf(size: int = 3000, specials: tuple[str, ...] = SPECIAL) -> pathlib.Path:
    """The same vocabulary in the Hugging Face layout, converted by transformers, with mistral-common's template."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
    from transformers.integrations.mistral.tokenizer import MistralConverter

    folder = pathlib.Path(tempfile.mkdtemp(dir=_folders.name))
    tekken = small_tekken(size, specials) / "tekken.json"
    MistralConverter(str(tekken)).converted().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(convert_tokenizer_to_chat_template(str(tekken)), encoding="utf-8")
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", **NAMED},
        "special_tokens_map.json": NAMED,
        "preprocessor_config.json": {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 1024}},
        "processor_config.json": {"processor_class": "PixtralProcessor", "patch_size": 16},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def copy_of(folder: pathlib.Path, target: pathlib.Path, *, without: tuple[str, ...] = ()) -> pathlib.Path:
    """A copy of a folder that a test may change."""
    shutil.copytree(folder, target, ignore=lambda _, names: [name for name in names if name in without])
    return target


def make_image(width: int, height: int, seed: int = 0) -> Any:
    """A PIL image with something in it."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    small = generator.integers(0, 255, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


def png_data_uri(width: int, height: int, seed: int = 0) -> str:
    """An image as a data URI."""
    import io

    buffer = io.BytesIO()
    make_image(width, height, seed).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather — quelle température?",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def random_conversation(seed: int, *, images: bool = True, system: bool = True, tools: bool = True) -> dict[str, Any]:
    """{"messages", "tools"} of 1 to 3 turns that Mistral's formats allow; images are bare parts of type "image"."""
    rng = random.Random(seed)
    words = [text for text in TEXTS if text.strip()]
    messages: list[dict[str, Any]] = []
    if system and rng.random() < 0.4:
        text = rng.choice(words)
        messages.append({"role": "system", "content": text if rng.random() < 0.5 else [{"type": "text", "text": text}]})
    used = tools and rng.random() < 0.3
    turns = rng.randint(1, 3)
    for turn in range(turns):
        messages.append({"role": "user", "content": _content(rng, words, images)})
        if turn == turns - 1:
            break
        if used and rng.random() < 0.7:
            name = "".join(rng.choices("abcXYZ019", k=9))
            arguments = json.dumps({"city": rng.choice(words), "days": turn}, ensure_ascii=rng.random() < 0.5)
            call = {"id": name, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
            messages.append({"role": "assistant", "tool_calls": [call]})
            result = rng.choice(["12", "-1.5", "sunny ☀", '{"t": 3}'])
            messages.append({"role": "tool", "tool_call_id": name, "name": "get_weather", "content": result})
        messages.append({"role": "assistant", "content": rng.choice(words)})
    return {"messages": messages, "tools": [WEATHER] if used else None}


def _content(rng: random.Random, words: list[str], images: bool) -> Any:
    if rng.random() < 0.25:
        return rng.choice(words)
    kinds = [rng.choice(("text", "image") if images else ("text",)) for _ in range(rng.randint(1, 4))]
    return [{"type": "image"} if kind == "image" else {"type": "text", "text": rng.choice(words)} for kind in kinds]
