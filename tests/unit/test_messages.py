"""Every shape of a message becomes the same values; everything else is refused by name."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pixtral.errors import PromptError
from pixtral.messages import (
    ImagePart,
    Message,
    TextPart,
    ToolCall,
    fill_images,
    image_sources,
    is_batch,
    normalize,
    to_openai,
)

URL = "https://example.org/cat.png"


@pytest.mark.parametrize(
    "image",
    [
        {"type": "image", "url": URL},
        {"type": "image_url", "image_url": URL},
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
        {"type": "image", "image": URL},
        {"type": "image", "image_url": {"url": URL}},
        {"type": "image", "url": URL, "path": None},
        ImagePart(URL),
    ],
)
@pytest.mark.parametrize(
    "text", [{"type": "text", "text": "hi"}, {"type": "text", "content": "hi"}, "hi", TextPart("hi")]
)
def test_the_shapes_of_one_message_are_one(image: Any, text: Any) -> None:
    expected = Message("user", (TextPart("hi"), ImagePart(URL)))
    assert normalize([{"role": "user", "content": [text, image]}]) == [expected]
    assert normalize(({"role": "user", "content": (text, image), "name": None},)) == [expected]


def test_where_an_image_comes_from_stays_unmistakable() -> None:
    def source(**part: Any) -> object:
        return image_sources(normalize([{"role": "user", "content": [{"type": "image", **part}]}]))[0]

    assert source(path="cat.png") == Path("cat.png") and source(path=Path("cat.png")) == Path("cat.png")
    assert source(path="file:///tmp/my%20cat.png") == Path("/tmp/my cat.png")
    assert source(base64="iVBORw0") == "data:image/unknown;base64,iVBORw0" == source(base64=b"iVBORw0")
    assert source(base64="data:image/png;base64,iVBORw0") == "data:image/png;base64,iVBORw0"
    anything = object()
    assert source(image=anything) is anything
    assert source() is None


def test_tools_and_other_roles() -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}, "index": 0}
    chat = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "content": "5", "tool_call_id": "abcdefghi", "name": "f"},
        {"role": "assistant", "content": "", "tool_calls": [ToolCall("g", {"b": 2})]},
    ]
    system, asked, answered, last = normalize(chat)
    assert system == Message("system", (TextPart("be brief"),)) and system.plain
    assert asked.tool_calls == (ToolCall("f", '{"a": 1}', "abcdefghi"),) and asked.parts == ()
    assert (answered.tool_call_id, answered.name, answered.text) == ("abcdefghi", "f", "5")
    assert last.tool_calls == (ToolCall("g", {"b": 2}),)
    assert to_openai([asked]) == [
        {"role": "assistant", "tool_calls": [{k: v for k, v in call.items() if k != "index"}]}
    ]


def test_an_answer_of_the_openai_client_can_be_sent_back() -> None:
    class Answer:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "assistant", "content": "yes", "tool_calls": None, "audio": None, "annotations": []}

    assert normalize([{"role": "user", "content": "?"}, Answer()])[1].text == "yes"


def test_there_and_back() -> None:
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": URL}}]},
        {"role": "assistant", "content": "b"},
    ]
    assert to_openai(normalize(chat)) == chat
    assert normalize(to_openai(normalize(chat))) == normalize(chat) == normalize(normalize(chat))
    assert to_openai(normalize(chat), sources=False)[0]["content"][1] == {"type": "image"}
    other = normalize([{"role": "user", "content": [{"type": "image", "image": b"x"}]}])
    assert to_openai(other)[0]["content"] == [{"type": "image", "image": b"x"}]


def test_images_are_handed_out_in_reading_order() -> None:
    chat = normalize(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "image", "url": URL}]},
            {"role": "user", "content": [{"type": "image"}]},
        ]
    )
    filled = fill_images(chat, [1, 2])
    assert image_sources(filled) == [1, URL, 2] and image_sources(chat) == [None, URL, None]
    assert filled[0].images == (ImagePart(1), ImagePart(URL))
    for wrong in ([], [1], [1, 2, 3]):
        with pytest.raises(PromptError, match=rf"2 image part\(s\) without a source but {len(wrong)} image"):
            fill_images(chat, wrong)


def test_batches() -> None:
    one = [{"role": "user", "content": "a"}]
    assert is_batch([one, one]) and is_batch(([],)) and not is_batch(one) and not is_batch([]) and not is_batch("ab")


REFUSED: list[tuple[Any, str]] = [
    ([], "empty"),
    ("hello", "list of messages, got str"),
    ({"role": "user", "content": "a"}, "list of messages, got dict"),
    (5, "list of messages, got int"),
    (["hello"], "message 0 is a str"),
    ([{"content": "a"}], "message 0 has role None"),
    ([{"role": "robot", "content": "a"}], "role 'robot'; expected one of system, user, assistant, tool"),
    ([{"role": "user"}], r"message 0 \(user\) has no content"),
    ([{"role": "user", "content": None}], "has no content"),
    ([{"role": "user", "content": 5}], "content of type int"),
    ([{"role": "user", "content": b"x"}], "content of type bytes"),
    ([{"role": "user", "content": {"type": "text", "text": "a"}}], "content of type dict"),
    ([{"role": "user", "content": "a", "contents": "b"}], "unknown key 'contents'; did you mean 'content'"),
    ([{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}], "only an ass"),
    ([{"role": "system", "content": [{"type": "image", "url": URL}]}], "only user messages may contain images"),
    ([{"role": "assistant", "content": [{"type": "image", "url": URL}]}], "only user messages may contain images"),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": [5]}], r"message 1 \(user\), part 0 is a int"),
    ([{"role": "user", "content": [{"text": "a"}]}], "type None"),
    ([{"role": "user", "content": [{"type": "txt", "text": "a"}]}], "type 'txt'; did you mean 'text'"),
    ([{"role": "user", "content": [{"type": "video", "url": URL}]}], "type 'video'"),
    ([{"role": "user", "content": [{"type": "text"}]}], "needs one string under 'text'"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "needs one string under 'text'"),
    ([{"role": "user", "content": [{"type": "text", "text": "a", "content": "b"}]}], "needs one string under 'text'"),
    ([{"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}], "unknown key 'cache'"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "no 'image_url'"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"uri": URL}}]}], "unknown key 'uri'"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"detail": "low"}}]}], "image_url=None"),
    ([{"role": "user", "content": [{"type": "image", "url": 5}]}], "url=5; expected a non-empty string"),
    ([{"role": "user", "content": [{"type": "image", "url": ""}]}], "expected a non-empty string"),
    ([{"role": "user", "content": [{"type": "image", "url": b"x"}]}], "expected a non-empty string"),
    ([{"role": "user", "content": [{"type": "image", "url": URL, "path": "a"}]}], r"2 times \(url, path\)"),
    ([{"role": "user", "content": [{"type": "image", "uri": URL}]}], "unknown key 'uri'"),
    ([{"role": "assistant", "tool_calls": ["f"]}], "tool call of type str"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], "expected"),
    ([{"role": "assistant", "tool_calls": [{"id": 5, "name": "f", "arguments": "{}"}]}], "tool call id is 5"),
    ([{"role": "tool", "content": "a", "tool_call_id": 5}], "tool_call_id is 5"),
]


@pytest.mark.parametrize(("conversation", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals_say_what_and_where(conversation: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        normalize(conversation)


def test_messages_cannot_be_changed_and_need_nothing_heavy() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        normalize([{"role": "user", "content": "a"}])[0].role = "tool"  # type: ignore[misc]
    code = "import sys, pixtral.messages; sys.exit(any(m in sys.modules for m in ('numpy', 'torch', 'PIL', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    import os

    import pixtral

    return {**os.environ, "PYTHONPATH": str(Path(pixtral.__file__).parents[1])}
