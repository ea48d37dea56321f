"""Placeholders become as many tokens as images have features, and truncation keeps images whole."""

from __future__ import annotations

import pytest

from pixtral.errors import PromptError
from pixtral.images.geometry import Grid
from pixtral.processing.expansion import ImageTokens, check_counts, expand_prompts, truncate

TOKENS = ImageTokens(("[IMG]", "[IMG_BREAK]", "[IMG_END]"), 10, 12, 13)


def test_images_are_taken_in_order_over_all_prompts() -> None:
    first, second, third = expand_prompts([[1, 10, 5], [7], [10, 10]], [Grid(1, 2), Grid(2, 1), Grid(1, 1)], TOKENS)
    assert first.ids == [1, 10, 10, 13, 5] and first.spans == [(1, 4)]
    assert second.ids == [7] and second.spans == []
    assert third.ids == [10, 12, 10, 13, 10, 13] and third.spans == [(0, 4), (4, 6)]


@pytest.mark.parametrize(
    ("prompts", "images", "per_prompt", "message"),
    [
        ([[10]], 0, None, r"1 \[IMG\] token\(s\) but no images were passed"),
        ([[1]], 1, None, r"0 \[IMG\] token\(s\) but 1 image"),
        ([[10], [10, 10]], 2, None, r"3 \[IMG\] token\(s\) but 2 image"),
        ([[10], [10]], 2, [2, 0], r"prompt 0 has 1 \[IMG\] token\(s\) but 2 image"),
        ([[10], [10]], 2, [2], r"1 lists but there are 2 prompt"),
    ],
)
def test_numbers_that_do_not_fit(
    prompts: list[list[int]], images: int, per_prompt: list[int] | None, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        check_counts(prompts, images, per_prompt, TOKENS)


def test_numbers_that_fit() -> None:
    check_counts([[10], [1], [10, 10]], 3, [1, 0, 2], TOKENS)
    check_counts([[10], [1], [10, 10]], 3, None, TOKENS)
    check_counts([[1]], 0, None, TOKENS)


def test_truncation_leaves_images_whole() -> None:
    (prompt,) = expand_prompts([[1, 2, 10, 3, 4, 5]], [Grid(1, 2)], TOKENS)  # 1 2 [10 10 13] 3 4 5
    assert truncate(prompt, 8, "right", 0) == prompt.ids
    assert truncate(prompt, 5, "right", 0) == [1, 2, 10, 10, 13]
    assert truncate(prompt, 6, "left", 0) == [10, 10, 13, 3, 4, 5]
    for limit, side, left in ((4, "right", 2), (2, "right", 0), (5, "left", 2), (3, "left", 0)):
        with pytest.raises(PromptError, match=f"prompt 7: max_length={limit} leaves {left} of the 3 tokens of image 0"):
            truncate(prompt, limit, side, 7)
