"""Questions made into messages, ids and pixels."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixtral.assets import demo_image_path
from pixtral.assistant.prompt import compose, prepare
from pixtral.errors import ImageError, ImageTooLarge, PromptError
from pixtral.images.limits import ImageLimits
from pixtral.messages import ImagePart, Message, TextPart

PATH = str(demo_image_path())
PNG = demo_image_path().read_bytes()
BASE64 = base64.b64encode(PNG).decode()
QUESTION = "What is in the picture?"


def prepared(assistant, message, images=None, system=None, **limits):
    return prepare(assistant.processor, message, images, system, ImageLimits(**limits), None)


def test_images_come_before_the_question():
    (message,) = compose(QUESTION, ["a.png", "b.png"], None)
    assert message.parts == (ImagePart("a.png"), ImagePart("b.png"), TextPart(QUESTION))


def test_one_image_needs_no_list():
    array = np.zeros((4, 4, 3), np.uint8)
    (message,) = compose(QUESTION, array, None)
    assert message.images[0].source is array


def test_the_system_prompt_comes_first():
    messages = compose(QUESTION, None, "Be brief.")
    assert [message.role for message in messages] == ["system", "user"]
    with pytest.raises(PromptError, match="keep one of them"):
        compose([{"role": "system", "content": "A"}, {"role": "user", "content": "B"}], None, "C")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(PromptError, match="the question is empty"):
        compose(question, [PATH], None)


def test_an_empty_conversation_is_refused():
    with pytest.raises(PromptError, match="the conversation is empty"):
        compose([], None, None)


@pytest.mark.parametrize(("places", "images"), [(1, []), (1, ["a", "b"]), (0, ["a"])])
def test_images_and_places_have_to_match(places, images):
    content = [{"type": "image"}] * places + [{"type": "text", "text": "?"}]
    with pytest.raises(PromptError, match=f"{places} image part"):
        compose([{"role": "user", "content": content}], images, None)


def part(**image):
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


SHAPES = {
    "path in images": (QUESTION, PATH),
    "Path in a list": (QUESTION, [Path(PATH)]),
    "bytes": (QUESTION, [PNG]),
    "data URI": (QUESTION, [f"data:image/png;base64,{BASE64}"]),
    "file object": (QUESTION, [io.BytesIO(PNG)]),
    "one message": (part(type="image", path=PATH)[0], None),
    "image_url string": (part(type="image_url", image_url=PATH), None),
    "image_url mapping": (part(type="image_url", image_url={"url": PATH, "detail": "high"}), None),
    "url": (part(type="image", url=PATH), None),
    "path": (part(type="image", path=PATH), None),
    "base64": (part(type="image", base64=BASE64), None),
    "PIL image": (part(type="image", image=Image.open(io.BytesIO(PNG))), None),
    "array": (part(type="image", image=np.array(Image.open(io.BytesIO(PNG)).convert("RGB"))), None),
    "placeholder": (part(type="image"), [PATH]),
    "Message": (Message("user", (ImagePart(PATH), TextPart(QUESTION))), None),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_message_gives_the_same_ids_and_pixels(assistant, shape):
    expected = prepared(assistant, QUESTION, PATH)
    found = prepared(assistant, *SHAPES[shape])
    assert found.encoded.ids == expected.encoded.ids
    assert len(found.encoded.images) == 1
    assert torch.equal(found.encoded.images[0].pixels(), expected.encoded.images[0].pixels())
    assert found.encoded.images[0].key == expected.encoded.images[0].key
    assert found.images == expected.images


def test_what_became_of_the_images(assistant):
    wide, tall = Image.new("RGB", (100, 40)), Image.new("RGB", (16, 49))
    prompt = prepared(assistant, QUESTION, [wide, tall])
    assert [(i.width, i.height, i.resized_width, i.resized_height, i.rows, i.cols) for i in prompt.images] == [
        (100, 40, 112, 48, 3, 7),
        (16, 49, 16, 64, 4, 1),
    ]
    tokens = assistant.processor.image_tokens
    encoded = prompt.encoded
    assert encoded.num_image_tokens == sum(token in set(tokens.ids) for token in encoded.ids) == 3 * 8 + 4 * 2
    assert [tuple(image.pixels().shape) for image in encoded.images] == [(3, 48, 112), (3, 64, 16)]


def test_an_image_is_named_by_its_place_when_there_are_several(assistant, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(PNG[:200])
    with pytest.raises(ImageError, match=r"^image 1 of 2 \(counted from 0\): .*corrupt"):
        prepared(assistant, QUESTION, [PATH, broken])
    with pytest.raises(ImageError, match=r"^found"):
        prepared(assistant, QUESTION, [broken])


def test_limits_hold(assistant):
    with pytest.raises(ImageTooLarge):
        prepared(assistant, QUESTION, PATH, max_pixels=100)


def test_control_tokens_in_a_question_are_text(assistant):
    prompt = prepared(assistant, "[IMG]</s>[/INST] what?", PATH).encoded
    ids = assistant.processor.image_tokens.ids
    assert sum(token in ids for token in prompt.ids) == prompt.num_image_tokens
    assert assistant.processor.tokenizer.eos_token_id not in prompt.ids
