"""MistralCommonTokenizer: its files, its images, and the calls that have no counterpart elsewhere."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokens import DATA, LARGE, SPECIAL, WEATHER, copy_of, make_image, png_data_uri, small_tekken

from pixtral.errors import CheckpointError, ImageError, PromptError, UnknownArgument
from pixtral.images.limits import ImageLimits
from pixtral.images.processors import NativeImageProcessor
from pixtral.text.mistral import MistralCommonTokenizer
from pixtral.text.protocol import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> MistralCommonTokenizer:
    return MistralCommonTokenizer.from_pretrained(small_tekken())


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


IMAGE = {"type": "image", "image": make_image(40, 20)}


def test_it_is_a_tokenizer(tokenizer: MistralCommonTokenizer) -> None:
    checked: Tokenizer = tokenizer
    assert isinstance(checked, Tokenizer)
    assert tokenizer.token_to_id("[IMG]") == 10 and tokenizer.token_to_id("no such token") is None
    assert tokenizer.id_to_bytes(10) is None and tokenizer.id_to_bytes(24 + ord("a")) == b"a"
    large = MistralCommonTokenizer(LARGE)
    assert large.token_to_id("[IMG_BREAK]") == 14 and large.token_to_id("no such token") is None
    assert large.id_to_bytes(large.token_to_id("<0xC3>") or 0) == b"\xc3"
    assert "".join((large.id_to_bytes(i) or b"?").decode() for i in large.text_to_ids("a bc")) == " a bc"


def test_images_are_those_of_the_native_processor(tokenizer: MistralCommonTokenizer) -> None:
    found = tokenizer.apply_chat_template(user(IMAGE, {"type": "text", "text": "?"}), return_tensors="np")
    assert np.array_equal(found["pixel_values"][0], NativeImageProcessor().image(make_image(40, 20)))
    ids = found["input_ids"][0].tolist()
    assert ids[2:-2] == [10, 10, 10, 12, 10, 10, 10, 13] and found["image_sizes"].tolist() == [[32, 48]]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": make_image(40, 20, 3)},
        {"type": "image_url", "image_url": {"url": png_data_uri(40, 20, 3)}},
        {"type": "image", "url": png_data_uri(40, 20, 3)},
        {"type": "image", "base64": png_data_uri(40, 20, 3).split(",")[1]},
        {"type": "image", "image": np.asarray(make_image(40, 20, 3))},
    ],
)
def test_every_source_gives_the_same(tokenizer: MistralCommonTokenizer, part: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    make_image(40, 20, 3).save(path)
    expected = tokenizer.apply_chat_template(user({"type": "image", "path": str(path)}), return_tensors="pt")
    found = tokenizer.apply_chat_template(user(part), return_tensors="pt")
    handed = tokenizer.apply_chat_template(user({"type": "image"}), images=[make_image(40, 20, 3)], return_tensors="pt")
    for key in expected:
        assert expected[key].equal(found[key]) and expected[key].equal(handed[key])


def test_images_obey_the_limits(tmp_path: Path) -> None:
    tokenizer = MistralCommonTokenizer.from_pretrained(small_tekken())
    tokenizer.image_limits = ImageLimits(allow_files=False, allow_remote=False, max_pixels=1000)
    for source in (tmp_path / "x.png", "http://127.0.0.1:9/x.png", "file:///etc/passwd"):
        with pytest.raises(ImageError, match=r"not opened|not fetched|allow_"):
            tokenizer.apply_chat_template(user({"type": "image", "image": source}))
    with pytest.raises(ImageError, match="pixels"):
        tokenizer.apply_chat_template(user({"type": "image", "image": make_image(40, 30)}))


def test_mistral_commons_own_tokenizer_uses_our_images(tokenizer: MistralCommonTokenizer) -> None:
    """`tokenizer.tokenizer` is mistral-common's object; a request made by hand works without OpenCV."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    chat = user({"type": "image_url", "image_url": {"url": png_data_uri(20, 20)}})
    encoded = tokenizer.tokenizer.encode_chat_completion(ChatCompletionRequest.from_openai(chat))
    assert encoded.tokens == tokenizer.apply_chat_template(chat)["input_ids"]
    assert encoded.images[0].shape == (3, 32, 32)
    encoder: Any = tokenizer.tokenizer.instruct_tokenizer.image_encoder
    assert encoder.image_token == 10 and encoder.mm_config is encoder.image_config


def test_other_ids_of_the_control_tokens() -> None:
    """Nothing is hard-coded: the names decide."""
    shuffled = (*SPECIAL[:3], *reversed(SPECIAL[3:]))
    tokenizer = MistralCommonTokenizer.from_pretrained(small_tekken(specials=shuffled))
    ids = tokenizer.apply_chat_template(user(IMAGE))["input_ids"]
    names = [shuffled[i] for i in ids]
    assert names[:3] == ["<s>", "[INST]", "[IMG]"] and names[-2:] == ["[IMG_END]", "[/INST]"] and "[IMG_BREAK]" in names


def test_tools_may_be_functions(tokenizer: MistralCommonTokenizer) -> None:
    def get_weather(city: str, days: int = 1) -> None:
        """The weather.

        Args:
            city: Where
            days: How many
        """

    schema = {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer", "description": "How many"},
            },
            "required": ["city"],
        },
    }
    found = tokenizer.apply_chat_template(user("hi"), tools=[get_weather])
    assert (
        found["input_ids"]
        == tokenizer.apply_chat_template(user("hi"), tools=[{"type": "function", "function": schema}])["input_ids"]
    )
    assert found["input_ids"][1] == 5
    with pytest.raises(PromptError, match="expected a JSON schema or a function"):
        tokenizer.apply_chat_template(user("hi"), tools=["get_weather"])


def test_what_a_conversation_may_not_be(tokenizer: MistralCommonTokenizer) -> None:
    with pytest.raises(PromptError, match="image 1 has no source"):
        tokenizer.apply_chat_template(user(IMAGE, {"type": "image"}))
    with pytest.raises(PromptError, match="1 image part"):
        tokenizer.apply_chat_template(user({"type": "image"}), images=[])
    with pytest.raises(UnknownArgument, match=r"'temprature'.*'temperature'"):
        tokenizer.apply_chat_template(user("a"), temprature=1)
    with pytest.raises(PromptError, match="mistral-common refuses"):
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "tool_call_id": "x"}]
        )
    with pytest.raises(PromptError, match="mistral-common refuses"):
        tokenizer.apply_chat_template(user("a"), tools=[{"type": "function", "function": {"name": "no blanks please"}}])
    text_only = MistralCommonTokenizer(DATA / "mistral_instruct_tokenizer_241114.model.v7")
    with pytest.raises(PromptError, match="knows no images"):
        text_only.apply_chat_template(user(IMAGE))
    assert tokenizer.apply_chat_template(user("a"), temperature=0.5, seed=3)["input_ids"][0] == 1


def test_the_prompt_as_text(tokenizer: MistralCommonTokenizer) -> None:
    chat = user({"type": "text", "text": "a [IMG] b"})
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>[INST]a [IMG] b[/INST]"
    assert tokenizer.apply_chat_template([chat, chat], tokenize=False) == ["<s>[INST]a [IMG] b[/INST]"] * 2
    large = MistralCommonTokenizer(LARGE)
    ids = large.apply_chat_template(chat, tools=[WEATHER])["input_ids"]
    assert large.readable(ids).endswith("[INST]a [IMG] b[/INST]") and "▁" not in large.readable(ids)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("tokenizer.model.v3", "x.model.v7m1", "tokenizer.model"):
        shutil.copy(LARGE, tmp_path / name)
    assert MistralCommonTokenizer.from_pretrained(tmp_path)._path.name == "x.model.v7m1"
    shutil.copy(small_tekken() / "tekken.json", tmp_path)
    found = MistralCommonTokenizer.from_pretrained(str(tmp_path), padding_side="right", model_max_length=9)
    assert found._path.name == "tekken.json" and (found.padding_side, found.model_max_length) == ("right", 9)
    assert found("a b c d e f g h i j k", truncation=True)["input_ids"].__len__() == 9


def test_saving_and_reading_again(tokenizer: MistralCommonTokenizer, tmp_path: Path) -> None:
    (path,) = tokenizer.save_pretrained(tmp_path / "new" / "folder")
    again = MistralCommonTokenizer.from_pretrained(Path(path).parent)
    assert again.encode("hello [IMG]") == tokenizer.encode("hello [IMG]")
    assert again.save_pretrained(Path(path).parent) == (path,)
    shutil.copy(path, tmp_path / "my_tekken_7.json")
    assert MistralCommonTokenizer(tmp_path / "my_tekken_7.json").save_pretrained(tmp_path)[0].endswith("tekken.json")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        tokenizer.save_pretrained(tmp_path / "file")
    Path(path).unlink()
    with pytest.raises(FileNotFoundError, match="is gone"):
        again.save_pretrained(tmp_path)
    with pytest.raises(UnknownArgument, match="push_to_hub"):
        tokenizer.save_pretrained(tmp_path, push_to_hub=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it holds: nothing"):
        MistralCommonTokenizer.from_pretrained(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(PromptError, match=r"no tekken.json and no \*.model.v\* file; it holds: weights.bin"):
        MistralCommonTokenizer.from_pretrained(tmp_path)
    broken = copy_of(small_tekken(), tmp_path / "broken")
    text = (broken / "tekken.json").read_text()
    (broken / "tekken.json").write_text(text[:-100])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        MistralCommonTokenizer.from_pretrained(broken)
    (broken / "tekken.json").write_text(json.dumps({"config": {"version": "v3"}}))
    with pytest.raises(CheckpointError, match="cannot be read as a Mistral tokenizer"):
        MistralCommonTokenizer.from_pretrained(broken)
    with pytest.raises(FileNotFoundError):
        MistralCommonTokenizer(tmp_path / "missing.json")
    with pytest.raises(CheckpointError):
        MistralCommonTokenizer.from_pretrained(tmp_path / "no such folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "training"}, "mode is 'training'"),
        ({"padding_side": "top"}, "padding_side"),
        ({"truncation_side": "x"}, "truncation_side"),
        ({"vocab_file": "x"}, "vocab_file"),
    ],
)
def test_constructor_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MistralCommonTokenizer(small_tekken() / "tekken.json", **arguments)
    with pytest.raises(ValueError, match=message):
        MistralCommonTokenizer.from_pretrained(small_tekken(), **arguments)
    with pytest.raises(ValueError, match="one folder"):
        MistralCommonTokenizer.from_pretrained(small_tekken(), "more")


def test_unknown_tokens_and_ids(tokenizer: MistralCommonTokenizer) -> None:
    with pytest.warns(UserWarning, match="no token 'nonsense token'"):
        assert tokenizer.convert_tokens_to_ids(["nonsense token", "[INST]"]) == [0, 3]
    with pytest.raises(PromptError, match="id 3000 is not in the vocabulary of 3000"):
        tokenizer.convert_ids_to_tokens([5, 3000])
    with pytest.raises(PromptError, match="no such token"):
        tokenizer.pad_token = "nonsense"
    assert "vocab_size=3000" in repr(tokenizer)


def test_a_long_run_of_one_character_takes_no_time(tokenizer: MistralCommonTokenizer) -> None:
    """A second; were it to grow with the square of the length, it would be hours."""
    start = time.thread_time()
    ids = tokenizer.encode("A" * 1_000_000)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "A" * 1_000_000
    assert time.thread_time() - start < 60
