"""PixtralProcessor over both layouts: the documentation's programs, batches, truncation, files and refusals."""

from __future__ import annotations

import contextlib
import copy
import http.server
import io
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokens import LARGE, SPECIAL, WEATHER, copy_of, make_image, png_data_uri, small_hf, small_tekken

from pixtral.batch_feature import BatchFeature
from pixtral.errors import CheckpointError, ImageError, PromptError, UnknownArgument
from pixtral.images.limits import ImageLimits
from pixtral.images.processors import NativeImageProcessor, PixtralImageProcessor, PixtralImageProcessorFast
from pixtral.processing import AutoProcessor, PixtralProcessor
from pixtral.processing.prompts import NativePrompt
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer

LAYOUTS = ("hf", "mistral")


@pytest.fixture(scope="module")
def both() -> dict[str, PixtralProcessor]:
    return {"hf": AutoProcessor.from_pretrained(small_hf()), "mistral": AutoProcessor.from_pretrained(small_tekken())}


@pytest.fixture(params=LAYOUTS)
def processor(request: pytest.FixtureRequest, both: dict[str, PixtralProcessor]) -> PixtralProcessor:
    return both[request.param]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an HTTP server on this machine; /a.png and /b.png are images of 40x20 and 20x50."""
    files = {}
    for name, size in (("/a.png", (40, 20)), ("/b.png", (20, 50))):
        buffer = io.BytesIO()
        make_image(*size, 1).save(buffer, "PNG")
        files[name] = buffer.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(width: int = 40, height: int = 20, seed: int = 1) -> dict[str, Any]:
    return {"type": "image", "image": make_image(width, height, seed)}


def same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for key in found:
        assert torch.equal(found[key], expected[key]), key


READY = {"tokenize": True, "return_dict": True}


def test_the_two_programs_of_the_documentation(processor: PixtralProcessor, server: str) -> None:
    chat = user(
        {"type": "text", "content": "Can this animal"},
        {"type": "image", "url": f"{server}/a.png"},
        {"type": "text", "content": "live here?"},
        {"type": "image", "url": f"{server}/b.png"},
    )
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **READY, return_tensors="pt").to("cpu")
    assert isinstance(inputs, BatchFeature)
    assert inputs["image_sizes"].tolist() == [[32, 48], [64, 32]] and inputs.pixel_values.shape == (2, 3, 64, 48)
    text = processor.batch_decode(inputs["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
    assert text == "Can this animallive here?"

    words = [{"type": "text", "text": text} for text in ("Can this animal", "live here?")]
    prompt_first = user(words[0], {"type": "image"}, words[1], {"type": "image"})
    prompt = processor.apply_chat_template(prompt_first, tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>[INST]Can this animal[IMG]live here?[IMG][/INST]"
    later = processor(text=prompt, images=[make_image(40, 20, 1), make_image(20, 50, 1)], return_tensors="pt")
    same(later, inputs)
    later["pixel_values"] = later["pixel_values"].to(torch.bfloat16)
    moved = {key: value.to("cpu") for key, value in later.items()}
    assert moved["pixel_values"].dtype == torch.bfloat16 and moved["input_ids"].dtype == torch.int64


def test_layouts_agree_where_images_need_no_resizing(both: dict[str, PixtralProcessor]) -> None:
    chat = user({"type": "text", "text": "a"}, image(32, 48), {"type": "text", "text": "b"}, image(16, 16))
    hf, native = (both[layout].apply_chat_template(chat, **READY) for layout in LAYOUTS)
    assert torch.equal(hf["input_ids"], native["input_ids"])
    assert torch.allclose(hf["pixel_values"], native["pixel_values"], atol=1e-5)
    assert (both["hf"].layout, both["mistral"].layout) == LAYOUTS


def test_as_many_tokens_as_features(processor: PixtralProcessor) -> None:
    generator = np.random.default_rng(0)
    for width, height in [
        (1, 1),
        (1, 90),
        (90, 1),
        (1030, 1080),
        (17, 16),
        *generator.integers(1, 300, (12, 2)).tolist(),
    ]:
        found = processor(text="[IMG]", images=make_image(width, height))
        (rows, cols) = (found["image_sizes"][0] // 16).tolist()
        assert int((found["input_ids"] == processor.image_token_id).sum()) == rows * cols
        assert processor._get_num_multimodal_tokens([(height, width)])["num_image_tokens"] == [rows * (cols + 1)]
        assert processor.num_image_tokens(width, height) == rows * (cols + 1)


def test_a_batch_is_its_prompts_one_at_a_time(processor: PixtralProcessor) -> None:
    chats = [
        user({"type": "text", "text": "none"}),
        user(image(40, 20), {"type": "text", "text": "one, and a longer question about it"}),
        user(image(40, 20), {"type": "text", "text": "x"}, image(16, 80), image(60, 60), {"type": "text", "text": "y"}),
    ]
    batch = processor.apply_chat_template(chats, **READY, padding=True)
    lengths, place = batch["attention_mask"].sum(1).tolist(), 0
    for row, chat in enumerate(chats):
        alone = processor.apply_chat_template(chat, **READY)
        assert torch.equal(batch["input_ids"][row, -lengths[row] :], alone["input_ids"][0])
        assert (batch["input_ids"][row, : -lengths[row]] == processor.tokenizer.pad_token_id).all()
        for size, pixels in zip(alone.get("image_sizes", ()), alone.get("pixel_values", ()), strict=True):
            height, width = size.tolist()
            assert batch["image_sizes"][place].tolist() == [height, width]
            assert torch.equal(batch["pixel_values"][place, :, :height, :width], pixels[:, :height, :width])
            place += 1
    assert place == 4 == len(batch["image_sizes"])
    right = processor.apply_chat_template(chats, **READY, padding=True, padding_side="right", pad_to_multiple_of=8)
    assert right["input_ids"].shape[1] % 8 == 0 and right["attention_mask"][:, 0].tolist() == [1, 1, 1]


def test_prompt_first_with_lists_of_images(processor: PixtralProcessor) -> None:
    texts = ["<s>[INST]none[/INST]", "<s>[INST][IMG]one[/INST]", "<s>[INST][IMG][IMG]a[IMG][/INST]"]
    images = [make_image(40, 20), make_image(16, 80), make_image(60, 60), make_image(20, 20)]
    flat = processor(text=texts, images=images, padding=True)
    same(processor(text=texts, images=[[], images[:1], images[1:]], padding=True), flat)
    assert flat["image_sizes"].tolist() == [[32, 48], [80, 16], [64, 64], [32, 32]]
    assert flat["input_ids"][0][flat["attention_mask"][0] == 1].tolist()[0] == 1


def test_only_one_beginning_of_sequence(both: dict[str, PixtralProcessor], tmp_path: Path) -> None:
    import json

    folder = copy_of(small_hf(), tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    for found in (*both.values(), AutoProcessor.from_pretrained(folder)):
        for ids in (found(text="<s>[INST]a[/INST]"), found.apply_chat_template(user("a"), **READY)):
            assert ids["input_ids"][0].tolist().count(1) == 1
    assert AutoProcessor.from_pretrained(folder)(text="a")["input_ids"][0, 0] == 1
    assert both["mistral"](text="a", add_special_tokens=False)["input_ids"][0].tolist() == both[
        "mistral"
    ].tokenizer.text_to_ids("a")


def test_what_users_write_stays_text(processor: PixtralProcessor) -> None:
    text = "Look: [IMG] </s> [INST] [IMG_BREAK]"
    chat = user({"type": "text", "text": text}, image(), {"type": "text", "text": "[IMG]"})
    found = processor.apply_chat_template(chat, **READY)
    special = [token for token in found["input_ids"][0].tolist() if token in processor.tokenizer.all_special_ids]
    assert special == [1, 3, 10, 10, 10, 12, 10, 10, 10, 13, 4]
    assert processor.decode(found["input_ids"][0]).startswith(f"<s>[INST]{text}[IMG][IMG]")


def test_native_prompts_remember_their_ids(both: dict[str, PixtralProcessor]) -> None:
    native = both["mistral"]
    chat = user({"type": "text", "text": "[IMG] </s>"}, {"type": "image"}, {"type": "text", "text": "?"})
    prompt = native.apply_chat_template(chat)
    assert isinstance(prompt, NativePrompt) and prompt == "<s>[INST][IMG] </s>[IMG]?[/INST]"
    found = native(text=prompt, images=make_image(16, 16))
    assert found["input_ids"][0].tolist()[:2] == [1, 3] and (found["input_ids"] == 10).sum() == 1
    again = pickle.loads(pickle.dumps(prompt))
    assert again == prompt and again.ids == prompt.ids
    with pytest.raises(PromptError, match=r"2 \[IMG\] token\(s\) but 1 image"):
        native(text="" + str.__str__(prompt) + "", images=make_image(16, 16))


def test_large_with_a_sentencepiece_file(tmp_path: Path) -> None:
    shutil.copy(LARGE, tmp_path / "tokenizer.model.v7m1")
    large = AutoProcessor.from_pretrained(tmp_path)
    assert large.image_token_ids == [10, 14, 15]
    chat = [
        {"role": "system", "content": "Be brief."},
        *user({"type": "text", "text": "Wörld?"}, image(), {"type": "text", "text": "b"}),
    ]
    found = large.apply_chat_template(chat, **READY)
    assert found["input_ids"][0].tolist() == large.tokenizer.apply_chat_template(chat)["input_ids"]
    bare = [chat[0], *user({"type": "text", "text": "Wörld?"}, {"type": "image"}, {"type": "text", "text": "b"})]
    prompt = large.apply_chat_template(bare)
    assert prompt == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Wörld?[IMG]b[/INST]"
    for text in (prompt, str(prompt) + ""):
        same(large(text=text, images=make_image(40, 20, 1)), found)


def test_other_ids_of_the_image_tokens() -> None:
    shuffled = (*SPECIAL[:3], *reversed(SPECIAL[3:]))
    for folder in (small_hf(specials=shuffled), small_tekken(specials=shuffled)):
        processor = AutoProcessor.from_pretrained(folder)
        names = [shuffled.index(name) for name in ("[IMG]", "[IMG_BREAK]", "[IMG_END]")]
        assert processor.image_token_ids == names and names != [10, 12, 13]
        found = processor.apply_chat_template(user(image()), **READY)["input_ids"][0].tolist()
        assert [found.count(i) for i in names] == [6, 1, 1]


def test_turns_tools_and_open_answers(processor: PixtralProcessor) -> None:
    chat = [*user(image(), {"type": "text", "text": "?"}), {"role": "assistant", "content": "A cat"}]
    training = processor
    if processor.layout == "mistral":  # mistral-common takes an ended answer for training only
        with pytest.raises(PromptError, match="Expected last role User"):
            processor.apply_chat_template(chat, **READY)
        training = AutoProcessor.from_pretrained(small_tekken(), mode="finetuning")
    ended = training.apply_chat_template(chat, **READY)["input_ids"][0]
    opened = processor.apply_chat_template(chat, **READY, continue_final_message=True)["input_ids"][0]
    assert ended[-1] == 2 and torch.equal(ended[:-1], opened)
    more = [*chat, *user(image(16, 16))]
    assert len(processor.apply_chat_template(more, **READY)["image_sizes"]) == 2
    assert processor.apply_chat_template(user("a"), tools=[WEATHER], tokenize=True)[0, 1] == 5
    assert training.apply_chat_template([chat, chat]) == [training.apply_chat_template(chat)] * 2


def test_a_list_of_no_images_is_no_image(processor: PixtralProcessor) -> None:
    plain = processor.apply_chat_template(user("a"), **READY)
    for images in ([], [[]]):
        same(processor.apply_chat_template(user("a"), **READY, images=images), plain)
    assert "pixel_values" not in processor(text=["a"], images=[[]])


def test_a_trailing_image_goes_first_unless_told_otherwise(both: dict[str, PixtralProcessor]) -> None:
    chat = user({"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"})
    native = both["mistral"]
    assert native.apply_chat_template(chat) == "<s>[INST][IMG]a\n\nb[/INST]"
    assert native.apply_chat_template(chat, keep_order=True) == "<s>[INST]a\n\nb[IMG][/INST]"
    kept = native.tokenizer.apply_chat_template(chat, images=[make_image(16, 16)], keep_order=True)["input_ids"]
    assert kept[-3:] == [10, 13, 4]
    assert native.apply_chat_template(chat) == "<s>[INST][IMG]a\n\nb[/INST]", "the next one is not affected"
    with pytest.raises(UnknownArgument, match="keep_order"):
        both["hf"].apply_chat_template(chat, keep_order=True)


def test_results_as_lists_and_arrays(processor: PixtralProcessor) -> None:
    listed = processor(text=["[IMG]", "a b"], images=make_image(20, 20), return_tensors=None)
    assert isinstance(listed["input_ids"], list) and len(listed["input_ids"][1]) != len(listed["input_ids"][0])
    arrays = processor(text="[IMG]", images=make_image(20, 20), return_tensors="np")
    assert isinstance(arrays["input_ids"], np.ndarray) and isinstance(arrays["pixel_values"], np.ndarray)
    assert isinstance(processor.apply_chat_template(user("a"), tokenize=True, return_tensors=None), list)
    alone = processor(images=[make_image(20, 20)])
    assert set(alone) == {"pixel_values", "image_sizes"}
    typed = processor(text="x[IMG]", images=make_image(16, 16), return_mm_token_type_ids=True, add_special_tokens=False)
    assert typed["mm_token_type_ids"].tolist() == [[0, 1, 1]] or typed["mm_token_type_ids"].tolist() == [[0, 1]]
    assert processor.model_input_names == ["input_ids", "attention_mask", "pixel_values", "image_sizes"]
    assert processor.post_process_image_text_to_text(typed["input_ids"]) == ["x"]


def test_options_of_the_images(processor: PixtralProcessor) -> None:
    for options in ({"size": {"longest_edge": 64}}, {"images_kwargs": {"size": {"longest_edge": 64}}}):
        assert processor(text="[IMG]", images=make_image(200, 100), **options)["image_sizes"].tolist() == [[32, 64]]
        found = processor.apply_chat_template(user(image(200, 100)), **READY, processor_kwargs=options)
        assert found["image_sizes"].tolist() == [[32, 64]]
    with pytest.raises(ImageError, match="pixels"):
        processor(text="[IMG]", images=make_image(200, 100), limits=ImageLimits(max_pixels=100))


def test_truncation(processor: PixtralProcessor) -> None:
    chat = user(image(), {"type": "text", "text": "one two three four"})
    whole = processor.apply_chat_template(chat, **READY)["input_ids"]
    cut = processor.apply_chat_template(chat, **READY, truncation=True, max_length=11)
    assert torch.equal(cut["input_ids"], whole[:, :11]) and cut["attention_mask"].shape == (1, 11)
    with pytest.raises(PromptError, match="max_length=9 leaves 7 of the 8 tokens of image 0"):
        processor.apply_chat_template(chat, **READY, truncation=True, max_length=9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, PromptError, "nothing to process"),
        ({"text": "[IMG]"}, PromptError, "no images were passed"),
        ({"text": "[IMG]", "images": []}, PromptError, "no images were passed"),
        ({"text": "a", "images": make_image(9, 9)}, PromptError, r"0 \[IMG\]"),
        ({"text": "[IMG]", "images": [make_image(9, 9)] * 2}, PromptError, r"1 \[IMG\] token\(s\) but 2 image"),
        ({"text": ["[IMG]", "a"], "images": [[], [make_image(9, 9)]]}, PromptError, "prompt 0 has 1"),
        ({"text": "[IMG]", "images": [[make_image(9, 9)], []]}, PromptError, "2 lists but there are 1 prompt"),
        ({"text": "[IMG]", "images": [[[make_image(9, 9)]]]}, ImageError, "lists of lists"),
        ({"text": ["[IMG]"] * 2, "images": [make_image(9, 9), [make_image(9, 9)]]}, ImageError, "beside lists"),
        ({"text": 5}, PromptError, "expected a string"),
        ({"text": []}, PromptError, "non-empty"),
        ({"text": ["a", 5]}, PromptError, "expected a string"),
        ({"text": "a", "paddding": True}, UnknownArgument, "did you mean 'padding'"),
        ({"text": "a", "videos": 1}, UnknownArgument, "'videos'"),
        ({"text": "a", "text_kwargs": {"pad": 1}}, UnknownArgument, "'pad'"),
        ({"text": ["a", "a b c"]}, ValueError, "padding=True"),
    ],
)
def test_refused_calls(processor: PixtralProcessor, call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        processor(**call)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conversation": []}, "empty"),
        ({"conversation": user({"type": "image"})}, "image 0 has no source"),
        ({"conversation": [user("a"), user({"type": "image"})]}, "conversation 1, image 0 has no source"),
        ({"conversation": user({"type": "image"}), "images": [b"", b""]}, r"1 image part\(s\).*2 image"),
        (
            {"conversation": [{"role": "tool", "content": "a", "tool_call_id": "123456789"}]},
            "refuses this conversation",
        ),
        ({"conversation": user("a"), "add_generation_promt": True}, "add_generation_promt"),
        ({"conversation": user("a"), "return_assistant_tokens_mask": True}, "return_assistant_tokens_mask"),
        (
            {"conversation": user("a"), "continue_final_message": True, "add_generation_prompt": True},
            "exclude each other",
        ),
        ({"conversation": user({"type": "image", "image": b"not an image"})}, "image"),
    ],
)
def test_refused_conversations(processor: PixtralProcessor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        processor.apply_chat_template(**{"padding": True, **READY, **arguments})


def test_what_only_a_template_can_do(both: dict[str, PixtralProcessor]) -> None:
    found = both["hf"].apply_chat_template(
        user("a"), chat_template="{{ x }}{{ documents[0].t }}", documents=[{"t": 1}], x="y"
    )
    assert found == "y1"
    for arguments in ({"chat_template": "x"}, {"documents": []}):
        with pytest.raises(PromptError, match="have no place"):
            both["mistral"].apply_chat_template(user("a"), **arguments)


def test_saving_and_reading_again(processor: PixtralProcessor, tmp_path: Path) -> None:
    paths = processor.save_pretrained(tmp_path / "saved")
    assert all(Path(path).is_file() for path in paths)
    again = PixtralProcessor.from_pretrained(tmp_path / "saved")
    assert again.layout == processor.layout and type(again.image_processor) is type(processor.image_processor)
    chat = user(image(1200, 70), {"type": "text", "text": "é"})
    same(again.apply_chat_template(chat, **READY), processor.apply_chat_template(chat, **READY))
    with pytest.raises(UnknownArgument):
        processor.save_pretrained(tmp_path, push_to_hub=True)


def test_processors_can_be_sent_to_other_processes(processor: PixtralProcessor) -> None:
    chat = user(image(), {"type": "text", "text": "é"})
    for again in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        same(again.apply_chat_template(chat, **READY), processor.apply_chat_template(chat, **READY))


def test_choices_while_reading(tmp_path: Path) -> None:
    folder = copy_of(small_hf(), tmp_path / "both")
    shutil.copy(small_tekken() / "tekken.json", folder)
    fast = AutoProcessor.from_pretrained(folder, padding_side="right", size={"longest_edge": 64})
    assert isinstance(fast.image_processor, PixtralImageProcessorFast) and fast.tokenizer.padding_side == "right"
    assert fast.num_image_tokens(640, 64) == 5
    assert isinstance(AutoProcessor.from_pretrained(folder, use_fast=False).image_processor, PixtralImageProcessor)
    native = AutoProcessor.from_pretrained(folder, tokenizer_mode="mistral", limits=ImageLimits(max_pixels=5))
    assert isinstance(native.image_processor, NativeImageProcessor) and isinstance(
        native.tokenizer, MistralCommonTokenizer
    )
    with pytest.raises(ImageError, match="pixels"):
        native.apply_chat_template(user({"type": "image", "url": png_data_uri(9, 9)}), **READY)
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.jinja").unlink()
    (folder / "config.json").write_text("{}")
    assert AutoProcessor.from_pretrained(folder).layout == "mistral"
    (folder / "tekken.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        AutoProcessor.from_pretrained(folder)
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoProcessor()


def test_what_a_processor_needs() -> None:
    with pytest.raises(PromptError, match="needs a tokenizer"):
        PixtralProcessor()
    hf = HuggingFaceTokenizer.from_pretrained(small_hf())
    with pytest.raises(PromptError, match=r"no '\[BILD\]' token"):
        PixtralProcessor(tokenizer=hf, image_token="[BILD]")
    made = PixtralProcessor(tokenizer=hf, chat_template="{{ messages[0].content }}")
    assert made.apply_chat_template([{"role": "user", "content": "b"}]) == "b"
