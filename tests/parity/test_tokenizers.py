"""Our tokenizers beside mistral-common and transformers: the same ids, masks, texts and refusals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tokens import LARGE, TEKKEN, TEXTS, make_image, png_data_uri, random_conversation, small_hf, small_tekken

from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer

transformers = pytest.importorskip("transformers")
mistral_image = pytest.importorskip("mistral_common.tokens.tokenizers.image")


@pytest.fixture(scope="module", params=[TEKKEN, LARGE], ids=["12B", "Large"])
def path(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def ours(path: Any) -> MistralCommonTokenizer:
    return MistralCommonTokenizer(path)


@pytest.fixture(scope="module")
def theirs(path: Any) -> Any:
    """Transformers' tokenizer of the same file."""
    from transformers.tokenization_mistral_common import MistralCommonBackend

    return MistralCommonBackend(path)


@pytest.fixture(scope="module")
def reference(path: Any) -> Any:
    """mistral-common itself."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(str(path))


@pytest.fixture(scope="module")
def fast() -> tuple[HuggingFaceTokenizer, Any]:
    """Our tokenizer and transformers' over the same tokenizer.json."""
    return HuggingFaceTokenizer.from_pretrained(small_hf()), transformers.AutoTokenizer.from_pretrained(small_hf())


def same(ours: Any, theirs: Any) -> None:
    """Equal mappings of lists, arrays or tensors."""
    assert dict(ours).keys() == dict(theirs).keys()
    for key in ours:
        a, b = ours[key], theirs[key]
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), key
        elif isinstance(b, np.ndarray):
            assert a.dtype == b.dtype and np.array_equal(a, b), key
        else:
            assert a == b, key


CALLS: list[dict[str, Any]] = [
    {},
    {"add_special_tokens": False},
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 12},
    {"padding": "max_length", "max_length": 12, "truncation": True},
    {"truncation": True, "max_length": 5},
    {"max_length": 4},
    {"truncation": "longest_first", "max_length": 6, "padding": True, "padding_side": "right"},
    {"padding": True, "return_tensors": "pt"},
    {"padding": True, "return_tensors": "np", "truncation": True, "max_length": 7},
    {"return_attention_mask": False},
    {"return_special_tokens_mask": True, "padding": True},
    {"return_length": True},
    {"return_special_tokens_mask": True, "add_special_tokens": False, "return_length": True},
]
BATCH = ["hello there", "a much longer text: Wörld 🐕 and [IMG] too", "", "x"]


@pytest.mark.parametrize("call", CALLS, ids=[str(call) for call in CALLS])
def test_calls_equal_transformers_over_mistral_common(ours: Any, theirs: Any, call: dict[str, Any]) -> None:
    same(ours(BATCH, **call), theirs(BATCH, **call))
    same(ours(BATCH[1], **call), theirs(BATCH[1], **call))
    same(ours([5, 6, 7, 8, 9, 10], **call), theirs([5, 6, 7, 8, 9, 10], **call))


@pytest.mark.parametrize("call", CALLS, ids=[str(call) for call in CALLS])
def test_calls_equal_transformers_over_tokenizer_json(fast: Any, call: dict[str, Any]) -> None:
    ours, theirs = fast
    same(ours(BATCH, **call), theirs(BATCH, **call))
    if not {"return_tensors", "return_length"} & call.keys():  # theirs wraps the length of a single text in a list
        same(ours(BATCH[1], **call), theirs(BATCH[1], **call))


@pytest.mark.parametrize("side", ["left", "right"])
def test_overflow_and_truncation_side(monkeypatch: pytest.MonkeyPatch, ours: Any, theirs: Any, side: str) -> None:
    monkeypatch.setattr(ours, "truncation_side", side)
    monkeypatch.setattr(theirs, "truncation_side", side)
    options = {"truncation": True, "max_length": 6, "stride": 2, "return_overflowing_tokens": True}
    same(ours(BATCH[1], **options), theirs(BATCH[1], **options))
    same(ours(BATCH, **options), theirs(BATCH, **options))
    ids = list(range(20, 40))
    for strategy in ("longest_first", "do_not_truncate"):
        assert ours.truncate_sequences(ids, None, 7, strategy, 3) == theirs.truncate_sequences(
            ids, None, 7, strategy, 3
        )


def test_finetuning_mode_adds_the_end(path: Any) -> None:
    from transformers.tokenization_mistral_common import MistralCommonBackend

    ours, theirs = MistralCommonTokenizer(path, mode="finetuning"), MistralCommonBackend(path, mode="finetuning")
    same(
        ours(BATCH, padding=True, return_special_tokens_mask=True),
        theirs(BATCH, padding=True, return_special_tokens_mask=True),
    )
    assert ours.encode("hi")[-1] == ours.eos_token_id
    assert ours.num_special_tokens_to_add() == theirs.num_special_tokens_to_add() == 2
    assert ours.create_token_type_ids_from_sequences([5, 6]) == theirs.create_token_type_ids_from_sequences([5, 6])


@pytest.mark.parametrize("text", TEXTS)
def test_texts_both_ways(ours: Any, theirs: Any, fast: Any, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    framed = [3, *ids, 4, 2]
    for skip in (False, True):
        assert ours.decode(framed, skip_special_tokens=skip) == theirs.decode(framed, skip_special_tokens=skip)
    assert ours.tokenize(text) == theirs.tokenize(text)
    for one, other in (fast,):
        ids = other.encode(text)
        assert one.encode(text) == ids and one.tokenize(text) == other.tokenize(text)
        for skip in (False, True):
            assert one.decode(ids, skip_special_tokens=skip) == other.decode(ids, skip_special_tokens=skip)


def test_decoding_of_batches_tensors_and_single_ids(ours: Any, theirs: Any, fast: Any) -> None:
    rows = ours(BATCH, padding=True, return_tensors="pt")["input_ids"]
    for value in (rows, rows.numpy(), rows.tolist()):
        assert ours.decode(value) == theirs.decode(value)
        assert ours.batch_decode(value, skip_special_tokens=True) == theirs.batch_decode(
            value, skip_special_tokens=True
        )
    assert ours.decode(1500) == theirs.decode(1500)
    assert ours.decode([]) == theirs.decode([]) == ""
    spaced = ours.encode("hello , it 's me . do n't !", add_special_tokens=False)
    for clean in (None, False, True):
        expected = theirs.decode(spaced, clean_up_tokenization_spaces=clean)
        assert ours.decode(spaced, clean_up_tokenization_spaces=clean) == expected
    one, other = fast
    rows = other(BATCH, padding=True, return_tensors="pt")["input_ids"]
    assert one.batch_decode(rows, clean_up_tokenization_spaces=True) == other.batch_decode(
        rows, clean_up_tokenization_spaces=True
    )


def test_vocabulary(ours: Any, theirs: Any) -> None:
    assert ours.vocab_size == theirs.vocab_size == len(ours)
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.all_special_tokens == theirs.all_special_tokens
    for name in ("bos", "eos", "unk", "pad"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    ids = [0, 1, 2, 3, 10, 500, 1005, 1500, 20000, 32000]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids, True) == theirs.convert_ids_to_tokens(ids, True)
    assert ours.convert_ids_to_tokens(1500) == theirs.convert_ids_to_tokens(1500)
    tokens = ["[IMG]", "[IMG_END]", "hello", "▁hello", " hello", "</s>"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tokens that one of the two vocabularies lacks
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
        assert ours.convert_tokens_to_ids("no such token") == theirs.convert_tokens_to_ids("no such token")
    for row, complete in (([1, 20, 2], True), ([20, 30], False)):
        assert ours.get_special_tokens_mask(row, None, complete) == theirs.get_special_tokens_mask(row, None, complete)


def test_whole_vocabulary_of_a_cut_tekken() -> None:
    from transformers.tokenization_mistral_common import MistralCommonBackend

    ours = MistralCommonTokenizer.from_pretrained(small_tekken())
    theirs = MistralCommonBackend.from_pretrained(small_tekken())
    assert ours.vocab_size == 3000
    assert ours.get_vocab() == theirs.get_vocab()
    fast, reference = (
        HuggingFaceTokenizer.from_pretrained(small_hf()),
        transformers.AutoTokenizer.from_pretrained(small_hf()),
    )
    assert fast.get_vocab() == reference.get_vocab() and len(fast) == len(reference) == 3000
    assert fast.vocab_size == reference.vocab_size
    assert fast.special_tokens_map == {
        k: v for k, v in reference.special_tokens_map.items() if k in fast.special_tokens_map
    }
    assert fast.padding_side == reference.padding_side == "left"
    assert fast.convert_ids_to_tokens([5, 600, 2999]) == reference.convert_ids_to_tokens([5, 600, 2999])
    assert fast.convert_tokens_to_string(["Ġa", "Ã©"]) == reference.convert_tokens_to_string(["Ġa", "Ã©"])


def test_padding_of_rows_and_tensors(ours: Any, theirs: Any) -> None:
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}]
    same(ours.pad(rows), theirs.pad([dict(row) for row in rows]))
    same(
        ours.pad(rows, padding="max_length", max_length=6, return_tensors="pt"),
        theirs.pad([dict(row) for row in rows], padding="max_length", max_length=6, return_tensors="pt"),
    )
    columns = {"input_ids": [[1, 2], [3]], "special_tokens_mask": [[0, 1], [0]]}
    same(
        ours.pad(columns, pad_to_multiple_of=4),
        theirs.pad({k: list(v) for k, v in columns.items()}, pad_to_multiple_of=4),
    )
    same(ours.pad({"input_ids": [1, 2, 3]}), theirs.pad({"input_ids": [1, 2, 3]}))
    tensors = {"input_ids": torch.tensor([[1, 2, 3]])}
    same(ours.pad(tensors), theirs.pad(dict(tensors)))


REFUSED_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("__call__", {"text": "a", "text_pair": "b"}),
    ("__call__", {"text": "a", "text_target": "b"}),
    ("__call__", {"text": "a", "is_split_into_words": True}),
    ("__call__", {"text": "a", "truncation": "only_first"}),
    ("__call__", {"text": "a", "return_offsets_mapping": True}),
    ("__call__", {"text": "a", "split_special_tokens": True}),
    ("__call__", {"text": "a", "padding": "nonsense"}),
    ("__call__", {"text": "a", "return_tensors": "tf"}),
    ("__call__", {"text": "a", "truncation": True, "padding": True, "max_length": 5, "pad_to_multiple_of": 4}),
    ("encode", {"text": "a", "unknown": 1}),
    ("encode", {"text": "a", "text_pair": "b"}),
    ("encode", {"text": {"a": 1}}),
    ("decode", {"token_ids": [5], "unknown": 1}),
    ("batch_decode", {"sequences": [[5]], "unknown": 1}),
    ("tokenize", {"text": "a", "unknown": 1}),
    ("prepare_for_model", {"ids": [5], "pair_ids": [6]}),
    ("prepare_for_model", {"ids": [5], "unknown": 1}),
    ("truncate_sequences", {"ids": [5], "pair_ids": [6]}),
    ("truncate_sequences", {"ids": [5], "num_tokens_to_remove": 1, "truncation_strategy": "only_first"}),
    ("get_special_tokens_mask", {"token_ids_0": [5], "token_ids_1": [6]}),
    ("build_inputs_with_special_tokens", {"token_ids_0": [5], "token_ids_1": [6]}),
    ("create_token_type_ids_from_sequences", {"token_ids_0": [5], "token_ids_1": [6]}),
    ("num_special_tokens_to_add", {"pair": True}),
    ("convert_ids_to_tokens", {"ids": 1, "skip_special_tokens": True}),
    ("pad", {"encoded_inputs": {"attention_mask": [1]}}),
    ("apply_chat_template", {"conversation": [{"role": "user", "content": "a"}], "truncation": "longest_first"}),
    (
        "apply_chat_template",
        {
            "conversation": [{"role": "user", "content": "a"}],
            "add_generation_prompt": True,
            "continue_final_message": True,
        },
    ),
    (
        "apply_chat_template",
        {
            "conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "add_generation_prompt": True,
        },
    ),
    ("apply_chat_template", {"conversation": [{"role": "user", "content": [{"type": "image"}]}]}),
    ("apply_chat_template", {"conversation": [{"role": "user", "content": "a"}], "continue_final_message": True}),
    ("apply_chat_template", {"conversation": [{"role": "nobody", "content": "a"}]}),
    ("apply_chat_template", {"conversation": [{"role": "user", "content": "b"}, {"role": "tool", "content": "a"}]}),
    ("add_tokens", {"special_tokens_dict": {}}),
    ("add_special_tokens", {"special_tokens_dict": {}}),
    ("added_tokens_decoder", {}),
    ("convert_added_tokens", {"obj": 1}),
    ("get_chat_template", {}),
    (
        "save_chat_templates",
        {"save_directory": "x", "tokenizer_config": {}, "filename_prefix": None, "save_jinja_files": True},
    ),
    ("save_vocabulary", {"save_directory": "x"}),
    ("save_pretrained", {"save_directory": "x", "unknown": 1}),
    ("save_pretrained", {"save_directory": "x", "save_format": "zip"}),
]


@pytest.mark.parametrize(("method", "arguments"), REFUSED_CALLS, ids=[f"{m}-{list(a)[-1:]}" for m, a in REFUSED_CALLS])
def test_refusals_are_those_of_transformers(ours: Any, theirs: Any, method: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(Exception) as reference:
        getattr(theirs, method)(**arguments)
    expected = NotImplementedError if reference.type is NotImplementedError else ValueError
    with pytest.raises(expected) as found:
        getattr(ours, method)(**arguments)
    if reference.type in (TypeError, ValueError):
        assert issubclass(found.type, reference.type)


# ---- conversations


@pytest.fixture
def reference_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """mistral-common's own image encoder without OpenCV: the same tokens, no pixels."""
    monkeypatch.setattr(
        mistral_image, "transform_image", lambda image, size: np.zeros((3, size[1], size[0]), np.float32)
    )


SIZES = ((30, 20), (16, 16), (100, 33), (1030, 1080), (64, 200))


@pytest.mark.usefixtures("reference_images")
def test_conversations_equal_mistral_common(reference: Any, ours: MistralCommonTokenizer) -> None:
    """Ids, and the sizes of the images in the order of the prompt, of generated conversations."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    uris = [png_data_uri(*size, seed) for seed, size in enumerate(SIZES)]
    with_images = with_tools = 0
    for seed in range(60):
        made = random_conversation(seed)
        chat, number = [], seed
        for message in made["messages"]:
            content = message.get("content")
            if isinstance(content, list):
                parts = []
                for part in content:
                    number += 1
                    uri = {
                        "type": "image_url",
                        "image_url": {"url": uris[number % len(uris) if number % 9 == 0 else number % 3]},
                    }
                    parts.append(uri if part["type"] == "image" else part)
                message = {**message, "content": parts}
            chat.append(message)
        expected = reference.encode_chat_completion(
            ChatCompletionRequest.from_openai(messages=chat, tools=made["tools"])
        )
        found = ours.apply_chat_template(chat, tools=made["tools"], return_tensors="pt")
        assert found["input_ids"][0].tolist() == expected.tokens, chat
        if expected.images:
            with_images += 1
            assert found["image_sizes"].tolist() == [list(image.shape[1:]) for image in expected.images]
        with_tools += made["tools"] is not None
    assert with_images > 30 and with_tools > 10


@pytest.mark.usefixtures("reference_images")
@pytest.mark.parametrize("kinds", ["ti", "it", "tti", "tit", "tii", "iti", "ttit", "i", "ii"])
def test_order_of_images_and_text(reference: Any, ours: MistralCommonTokenizer, kinds: str) -> None:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    image = {"type": "image_url", "image_url": {"url": png_data_uri(20, 40)}}
    chat = [
        {
            "role": "user",
            "content": [{"type": "text", "text": f"t{i}"} if k == "t" else image for i, k in enumerate(kinds)],
        }
    ]
    expected = reference.encode_chat_completion(ChatCompletionRequest.from_openai(chat))
    assert ours.apply_chat_template(chat)["input_ids"] == expected.tokens


def test_text_conversations_equal_transformers(ours: Any, theirs: Any) -> None:
    chats = [random_conversation(seed, images=False) for seed in range(40)]
    for chat in chats:
        mine, yours = (t.apply_chat_template(chat["messages"], tools=chat["tools"]) for t in (ours, theirs))
        same(mine, yours)
        assert ours.apply_chat_template(
            chat["messages"], tools=chat["tools"], tokenize=False
        ) == theirs.apply_chat_template(chat["messages"], tools=chat["tools"], tokenize=False)
    batch = [chat["messages"] for chat in chats if chat["tools"] is None][:4]
    for options in (
        {"padding": True, "return_tensors": "pt"},
        {"truncation": True, "max_length": 9},
        {"return_dict": False},
    ):
        mine, yours = (t.apply_chat_template(batch, **options) for t in (ours, theirs))
        same(mine, yours) if options.get("return_dict", True) else None
        assert options.get("return_dict", True) or mine == yours
    prefill = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    same(*(t.apply_chat_template(prefill, continue_final_message=True) for t in (ours, theirs)))


def test_images_of_different_sizes_come_padded(ours: MistralCommonTokenizer) -> None:
    """What transformers cannot do: np.stack of unequal images fails there."""
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": make_image(20, 40)},
                {"type": "text", "text": "x"},
                {"type": "image", "image": make_image(70, 20)},
            ],
        }
    ]
    found = ours.apply_chat_template(chat, return_tensors="pt")
    assert found["image_sizes"].tolist() == [[48, 32], [32, 80]]
    assert found["pixel_values"].shape == (2, 3, 48, 80)
    assert not found["pixel_values"][0, :, :, 32:].any() and not found["pixel_values"][1, :, 32:].any()
    listed = ours.apply_chat_template(chat)
    for row, image in zip(found["pixel_values"], listed["pixel_values"], strict=True):
        assert np.array_equal(row[:, : image.shape[1], : image.shape[2]].numpy(), image)
    as_array = ours.apply_chat_template(chat, return_tensors="np")
    assert np.array_equal(as_array["pixel_values"], found["pixel_values"].numpy())
