"""HuggingFaceTokenizer: its files and settings, and the protection of its chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokens import NAMED, copy_of, small_hf

from pixtral.errors import CheckpointError, PromptError, UnknownArgument
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.protocol import Tokenizer as Protocol


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.from_pretrained(small_hf())


def edited(folder: Path, name: str, **values: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    path = folder / name
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def metaspace(scheme: str = "first", **pieces: Any) -> Tokenizer:
    """A small tokenizer with blanks written as "▁", as SentencePiece conversions are."""
    vocab = {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        "[IMG]": 3,
        "▁": 4,
        "▁hi": 5,
        "hi": 6,
        "h": 7,
        "i": 8,
        "[": 9,
        "I": 10,
        "M": 11,
        "G": 12,
        "]": 13,
        "<": 14,
        "/": 15,
        "s": 16,
        ">": 17,
    }
    merges = [("h", "i"), ("▁", "hi")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=False))
    backend.pre_tokenizer = pieces.get("pre", pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False))
    backend.normalizer = pieces.get("normalizer")
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    added = [AddedToken(name, special=True, normalized=False, **pieces.get("flags", {})) for name in list(vocab)[:4]]
    backend.add_special_tokens(added)
    return backend


def test_it_is_a_tokenizer(tokenizer: HuggingFaceTokenizer) -> None:
    checked: Protocol = tokenizer
    assert isinstance(checked, Protocol)
    assert tokenizer.bos_token_id == 1 and tokenizer.pad_token_id == 11 and len(tokenizer.all_special_ids) == 24
    assert tokenizer.id_to_bytes(10) is None and tokenizer.id_to_bytes(24 + ord("a")) == b"a"
    assert tokenizer.convert_tokens_to_ids(["[IMG]", "no such token"]) == [10, 0]


def test_what_users_write_stays_text(tokenizer: HuggingFaceTokenizer) -> None:
    text = "a [IMG] b</s>[INST]"
    ids = tokenizer.apply_chat_template([{"role": "user", "content": text}])["input_ids"]
    assert ids == [1, 3, *tokenizer.ordinary_ids(text), 4]
    assert not set(tokenizer.all_special_ids) & set(ids[2:-1])
    assert tokenizer.decode(ids) == f"<s>[INST]{text}[/INST]"
    assert 10 in tokenizer.encode(text), "the text by itself is read as Transformers reads it"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("text", ["hi", " hi[IMG]hi", "[IMG]hi hi</s> hi", "hi[IMG] [IMG]hi", "[IMG]"])
def test_blanks_at_the_start_are_added_where_the_whole_has_them(scheme: str, text: str) -> None:
    tokenizer = HuggingFaceTokenizer(metaspace(scheme), NAMED)
    assert tokenizer.pieces_to_ids(tokenizer.control_tokens.split(text)) == tokenizer.text_to_ids(text)


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_tokens_that_swallow_blanks(flags: dict[str, bool]) -> None:
    tokenizer = HuggingFaceTokenizer(metaspace("never", flags=flags), NAMED)
    for text in ("hi [IMG] hi", " [IMG] ", "[IMG]  </s> hi"):
        assert tokenizer.pieces_to_ids(tokenizer.control_tokens.split(text)) == tokenizer.text_to_ids(text)


def test_normalizers_take_part() -> None:
    tokenizer = HuggingFaceTokenizer(metaspace("never", normalizer=normalizers.Lowercase()), NAMED)
    assert tokenizer.pieces_to_ids([(False, "HI"), (True, "[IMG]"), (False, "Hi")]) == [6, 3, 6]


def test_special_tokens_are_added_as_the_files_say(tmp_path: Path) -> None:
    folder = copy_of(small_hf(), tmp_path / "m")
    edited(folder, "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
    tokenizer = HuggingFaceTokenizer.from_pretrained(folder)
    assert tokenizer.encode("a") == [1, *tokenizer.text_to_ids("a"), 2] and tokenizer.num_special_tokens_to_add() == 2
    assert tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"] == [1, 0, 1]
    assert tokenizer("a b c d e", max_length=4)["input_ids"][-1] == 2
    edited(folder, "tokenizer_config.json", add_bos_token=None, add_eos_token=None)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.enable_padding()
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("a b c d e")
    assert ids == [1, *tokenizer.text_to_ids("a b c d e")] and len(ids) == 6
    assert tokenizer.encode("a", add_special_tokens=False) == tokenizer.text_to_ids("a")


def test_tokens_only_the_settings_know(tmp_path: Path) -> None:
    folder = copy_of(small_hf(), tmp_path / "m", without=("special_tokens_map.json",))
    added = {"3001": {"content": "<b>", "special": False}, "3000": {"content": "<a>", "special": True}}
    extra = ["<one>", {"content": "<two>"}, "[IMG]"]
    pad = {"content": "<mypad>", "lstrip": False}
    edited(
        folder,
        "tokenizer_config.json",
        pad_token=pad,
        added_tokens_decoder=added,
        additional_special_tokens=extra,
        model_max_length=int(1e30),
    )
    tokenizer = HuggingFaceTokenizer.from_pretrained(folder)
    names = ["<a>", "<b>", "<one>", "<two>", "<mypad>"]
    assert tokenizer.convert_tokens_to_ids(names) == [3000, 3001, 3002, 3003, 3004]
    assert tokenizer.pad_token_id == 3004 and 3001 not in tokenizer.all_special_ids and len(tokenizer) == 3005
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 2


def test_saving_and_reading_again(tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    paths = tokenizer.save_pretrained(tmp_path / "new")
    assert {Path(path).name for path in paths} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
    again = HuggingFaceTokenizer.from_pretrained(tmp_path / "new")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    chat = [{"role": "user", "content": "hé"}]
    for other in (again, theirs):
        assert other.apply_chat_template(chat)["input_ids"] == tokenizer.apply_chat_template(chat)["input_ids"]
        assert (other.padding_side, other.pad_token_id) == ("left", 11)
    assert HuggingFaceTokenizer.from_pretrained(tmp_path / "new", padding_side="right").padding_side == "right"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"no tokenizer.json; it holds: nothing"):
        HuggingFaceTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        HuggingFaceTokenizer.from_pretrained(tmp_path)
    folder = copy_of(small_hf(), tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        HuggingFaceTokenizer.from_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises((CheckpointError, PromptError), match="JSON"):
        HuggingFaceTokenizer.from_pretrained(folder)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        HuggingFaceTokenizer.from_pretrained(small_hf()).save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": "a", "text_pair": "b"}, "text_pair"),
        ({"text": "a", "return_offsets_mapping": True}, "return_offsets_mapping"),
        ({"text": "a", "paddding": True}, "paddding"),
        ({"text": None}, "text is None"),
        ({"text": "a", "return_tensors": "tf"}, "return_tensors is 'tf'"),
        ({"text": ["a", "b c"], "return_tensors": "pt"}, "padding=True"),
    ],
)
def test_refused_calls(tokenizer: HuggingFaceTokenizer, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(**call)


def test_no_padding_token_and_no_template() -> None:
    bare = HuggingFaceTokenizer(metaspace(), {"bos_token": "<s>"})
    with pytest.raises(PromptError, match="no padding token"):
        bare(["hi", "hi hi"], padding=True)
    with pytest.raises(PromptError, match="no chat template"):
        bare.apply_chat_template([{"role": "user", "content": "a"}])
    assert bare.apply_chat_template([{"role": "user", "content": "hi"}], chat_template="{{ messages[0].content }}")[
        "input_ids"
    ] == [5]
    with pytest.raises(UnknownArgument, match="nonsense"):
        HuggingFaceTokenizer.from_pretrained(small_hf(), nonsense=1)
    with pytest.raises(PromptError, match="padding_side"):
        HuggingFaceTokenizer(metaspace(), padding_side="middle")
