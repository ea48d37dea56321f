"""Streamed text is the decoded text, wherever the bytes of a character are split."""

from __future__ import annotations

import queue
import random
import threading

import pytest
import torch

from pixtral.errors import GenerationError
from pixtral.streamers import TextIteratorStreamer, TextStreamer


class Bytes:
    """A tokenizer of bytes; ids from 256 on are special and named."""

    def decode(self, token_ids, skip_special_tokens=False):
        parts, run = [], bytearray()
        for i in token_ids:
            if i < 256:
                run.append(i)
                continue
            parts.append(run.decode(errors="replace"))
            run = bytearray()
            if not skip_special_tokens:
                parts.append(f"<{i}>")
        return "".join(parts) + run.decode(errors="replace")


class Pieces:
    """A tokenizer of words that drops a space at the beginning, as SentencePiece does."""

    def decode(self, token_ids, skip_special_tokens=True):
        return "".join(f" w{i}" for i in token_ids if i > 0)[1:]


class Collect(TextStreamer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pieces, self.ends = [], 0

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append(text)
        self.ends += stream_end


def stream(streamer, prompt, new):
    streamer.put(torch.tensor([prompt]))
    for token in new:
        streamer.put(torch.tensor([token]))
    streamer.end()


TEXT = "Straße 日本語 👩‍🚀 é\u0301 \ufffd\n\tزهرة "


def test_pieces_join_to_the_text_and_are_whole_characters():
    ids = list(TEXT.encode())
    streamer = Collect(Bytes())
    stream(streamer, ids, ids)
    assert "".join(streamer.pieces) == TEXT * 2
    assert streamer.ends == 1
    assert not any("\ufffd" in piece for piece in streamer.pieces if TEXT.count(piece) == 0)
    # nothing is held back longer than its character lasts
    assert len([piece for piece in streamer.pieces if piece]) > len(TEXT) * 0.9


class ByteLevel(Bytes):
    """As the package's own tokenizers show themselves: bytes of every id."""

    byte_level = True
    joins_over_special = False

    def id_to_bytes(self, token_id):
        return bytes([token_id]) if token_id < 256 else None

    def ids_to_text(self, ids, skip_special_tokens):
        return self.decode(ids, skip_special_tokens)


@pytest.mark.parametrize("seed", range(10))
def test_any_bytes_exactly_with_a_byte_level_tokenizer(seed):
    random.seed(seed)
    ids = [random.choice([random.randrange(256), 0xE6, 0x97, 0xA5, 300]) for _ in range(200)] + [0xE6]
    for skip in (False, True):
        streamer = Collect(ByteLevel(), skip_special_tokens=skip)
        stream(streamer, ids[:10], ids[10:])
        whole = "".join(ByteLevel().decode(run) for run in split_at_special(ids, skip))
        assert "".join(streamer.pieces) == whole
        assert streamer.ends == 1


def split_at_special(ids, skip):
    runs = [[]]
    for token in ids:
        if token >= 256:
            runs += [[] if skip else [token], []]
        else:
            runs[-1].append(token)
    return runs


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_and_special_tokens(seed):
    random.seed(seed)
    ids = [random.choice([random.randrange(256), 0xE6, 0x97, 0xA5, 300]) for _ in range(200)] + [0xE6]
    for skip in (False, True):
        streamer = Collect(Bytes(), skip_special_tokens=skip)
        stream(streamer, ids[:10], ids[10:])
        joined, whole = "".join(streamer.pieces), Bytes().decode(ids, skip_special_tokens=skip)
        # broken bytes may be counted differently where a piece ends, everything else is equal
        assert joined.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_spaces_survive_tokenizers_that_trim():
    ids = [3, 0, 4, 5, 0, 0, 6]
    streamer = Collect(Pieces())
    stream(streamer, ids, ids)
    assert "".join(streamer.pieces) == Pieces().decode(ids * 2)


def test_skip_prompt_and_reuse(capsys):
    streamer = TextStreamer(Bytes(), skip_prompt=True)
    for _ in range(2):
        stream(streamer, list(b"hidden"), list(b"seen"))
    assert capsys.readouterr().out == "seen\nseen\n"


def test_one_sequence_only():
    with pytest.raises(GenerationError, match="2 sequences"):
        TextStreamer(Bytes()).put(torch.zeros(2, 5, dtype=torch.int64))
    streamer = TextStreamer(Bytes(), skip_prompt=True)
    streamer.put(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(GenerationError, match="2 sequences"):
        streamer.put(torch.tensor([65, 66]))


def test_iterator_in_another_thread():
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=10)
    thread = threading.Thread(target=stream, args=(streamer, [1], list(TEXT.encode())))
    thread.start()
    assert "".join(streamer) == TEXT
    thread.join()


def test_iterator_times_out():
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(Bytes(), timeout=0.01))
