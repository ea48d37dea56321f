"""Answers as values: sums, JSON, text."""

from __future__ import annotations

import json

from pixtral.assistant import Answer, Estimate, ImageInfo, Timings, Usage

TIMINGS = Timings(load=1.0, prepare=0.1, image=0.2, prompt=0.3, first_token=0.6, per_token=0.05, total=1.0)


def answer(**changes):
    fields = {"text": "A cat.", "finish_reason": "stop", "usage": Usage(50, 40, 4), "timings": TIMINGS}
    return Answer(**{**fields, **changes})


def test_it_prints_as_its_text():
    assert str(answer()) == "A cat."


def test_totals_and_speed():
    assert Usage(50, 40, 4).total_tokens == 54
    assert TIMINGS.tokens_per_second == 20
    assert Timings(0, 0, 0, 0, 0, per_token=0, total=0).tokens_per_second == 0


def test_json_has_everything_but_the_images():
    image = ImageInfo(width=30, height=20, resized_width=32, resized_height=32, rows=2, cols=2, tokens=6)
    made = json.loads(json.dumps(answer(images=(image,), messages=[{"role": "user", "content": object()}]).to_dict()))
    assert made["usage"] == {
        "prompt_tokens": 50,
        "image_tokens": 40,
        "completion_tokens": 4,
        "cached_tokens": 0,
        "total_tokens": 54,
    }
    assert made["timings"]["first_token"] == 0.6
    assert made["images"] == [
        {"width": 30, "height": 20, "resized_width": 32, "resized_height": 32, "rows": 2, "cols": 2, "tokens": 6}
    ]
    assert "messages" not in made


def test_an_estimate_fits_when_one_token_is_left():
    assert Estimate(99, 0, context_length=100, cache_bytes=0).fits
    assert not Estimate(100, 0, context_length=100, cache_bytes=0).fits
