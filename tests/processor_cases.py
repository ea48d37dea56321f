"""Calls of a PixtralProcessor, written down once for transformers' and ours. ("image", width, height) is an image."""

from __future__ import annotations

from typing import Any

from tokens import WEATHER, make_image

A, B, C, BIG = ("image", 40, 20), ("image", 16, 16), ("image", 33, 70), ("image", 130, 136)
SMALL = {"images_kwargs": {"size": {"longest_edge": 128}}}  # 130 x 136: floor and round differ

CALLS: list[dict[str, Any]] = [
    {"text": "<s>[INST][IMG]What?[/INST]", "images": A},
    {"text": "<s>[INST]a[IMG] b [IMG]\n[/INST]", "images": [A, C]},
    {
        "text": ["<s>[INST]none[/INST]", "<s>[INST][IMG]one[/INST]", "<s>[INST][IMG]x[IMG][IMG]three Wörld 🐕[/INST]"],
        "images": [A, B, C, A],
        "padding": True,
    },
    {"text": ["<s>[INST]none[/INST]", "<s>[INST][IMG]one[/INST]"], "images": [[], [B]], "padding": True},
    {"text": ["<s>[INST][IMG][/INST]", "<s>[INST][IMG][/INST]"], "images": [[A], [C]], "padding": True},
    {"text": "<s>[INST][IMG][/INST]", "images": BIG, **SMALL},
    {"text": ["no image", "and no more words than these"], "padding": True},
    {"text": ["a", "a b c d e f"], "padding": "max_length", "max_length": 12},
    {"text": "one two three four five", "truncation": True, "max_length": 3},
    {"text": "[IMG]trailing words that go", "images": B, "truncation": True, "max_length": 4},
    {"text": "[IMG]x", "images": A, "return_mm_token_type_ids": True},
    {"images": [A, C]},
]

CHATS: list[dict[str, Any]] = [
    {
        "conversation": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Can this animal"},
                    {"type": "image", "image": A},
                    {"type": "text", "text": "live here?"},
                    {"type": "image", "image": C},
                ],
            }
        ],
        "add_generation_prompt": True,
    },
    {
        "conversation": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": [{"type": "image", "image": B}, {"type": "text", "text": "?"}]},
        ]
    },
    {
        "conversation": [
            [{"role": "user", "content": "none"}],
            [{"role": "user", "content": [{"type": "image", "image": A}]}],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": A},
                        {"type": "image", "image": B},
                        {"type": "text", "text": "3"},
                        {"type": "image", "image": C},
                    ],
                }
            ],
        ],
        "processor_kwargs": {"padding": True},
    },
    {
        "conversation": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "Once upon"}],
        "continue_final_message": True,
    },
    {"conversation": [{"role": "user", "content": "Weather in Graz?"}], "tools": [WEATHER]},
    {
        "conversation": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": ("uri", 40, 20)}},
                    {"type": "text", "text": "?"},
                ],
            }
        ]
    },
]

REFUSED: list[dict[str, Any]] = [
    {},
    {"text": "[IMG]"},
    {"text": "[IMG]", "images": [A, A]},
    {"text": "no place", "images": A},
    {"text": ["[IMG]", "[IMG]"], "images": [A, [A]]},
    {"text": ["[IMG]", "[IMG]"], "images": [[[A]], [A]]},
    {"text": 5},
    {"text": ["a", "b c d"]},
    {"text": "[IMG]a", "images": A, "truncation": True, "max_length": 3},
    {"text": "a", "padding": "nonsense"},
]


def make_images(value: Any) -> Any:
    """The same call with its images made."""
    if isinstance(value, tuple):
        from tokens import png_data_uri

        kind, width, height = value
        return make_image(width, height, width) if kind == "image" else png_data_uri(width, height, width)
    if isinstance(value, dict):
        return {key: make_images(item) for key, item in value.items()}
    return [make_images(item) for item in value] if isinstance(value, list) else value
