"""Every program in examples/ runs on the embedded model, and says what the model says."""

from __future__ import annotations

import io
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from image_server import FILES
from oracle import greedy
from PIL import Image

import pixtral
from pixtral.assets import demo_image_path, tiny_path

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = str(tiny_path())


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example with arguments; (its variables, what it printed)."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return variables, capsys.readouterr().out

    return run


def new_ids(processor, model, parts, limit):
    """The slow way to the same tokens: mistral-common's or the template's prompt, no batch, no cache."""
    images = [Image.open(io.BytesIO(FILES[path])) for path in ("/dog.png", "/mountain.png")]
    content, rest = [], iter(images)
    for part in parts:
        content.append({"type": "image", "image": next(rest)} if part is None else {"type": "text", "text": part})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    pixels = [
        image[:, :height, :width].to(model.dtype)
        for image, (height, width) in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True)
    ]
    prompt = inputs["input_ids"][0].tolist()
    return prompt, greedy(model, prompt, pixels, limit, (processor.tokenizer.eos_token_id,))


PARTS = ("Can this animal", None, "live here?", None)


def test_two_images(run, server):
    variables, printed = run("two_images", TINY, f"{server}/dog.png", f"{server}/mountain.png")
    prompt, new = new_ids(variables["processor"], variables["model"], PARTS, 500)
    assert variables["generate_ids"].tolist() == [prompt + new]
    assert variables["inputs"]["image_sizes"].tolist() == [[160, 112], [96, 128]]
    assert re.sub(r"\s+", "", printed).startswith("Canthisanimallivehere?")  # the prompt, then the answer
    answer = variables["processor"].decode(new, skip_special_tokens=True).strip()
    assert answer
    assert printed.rstrip().endswith(answer)


def test_quantized(run, server):
    pytest.importorskip("bitsandbytes")
    variables, printed = run("quantized", TINY, f"{server}/dog.png", f"{server}/mountain.png")
    assert variables["model"].is_loaded_in_4bit
    assert type(variables["model"].language_model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    prompt, new = new_ids(variables["processor"], variables["model"], PARTS, 100)
    assert variables["generate_ids"].tolist() == [prompt + new]
    assert variables["inputs"]["pixel_values"].dtype == variables["model"].dtype == torch.bfloat16
    assert variables["prompt"].count("[IMG]") == 2
    assert variables["processor"].decode(new, skip_special_tokens=True).strip() in printed


def test_describe(run):
    variables, printed = run("describe")
    direct = pixtral.load().chat("What is in the picture?", images=demo_image_path())
    assert printed.splitlines()[0] == direct.text == variables["answer"].text
    assert direct.text.strip()
    assert f"{direct.usage.prompt_tokens} prompt tokens" in printed


def test_describe_another_image(run, server):
    variables, printed = run("describe", f"{server}/dog.png", TINY)
    assert variables["answer"].images[0].width == 100
    assert printed.splitlines()[0].strip()


def test_stream(run):
    variables, printed = run("stream")
    assert printed.splitlines()[0] == variables["answer"].text
    assert re.search(r"first token after [\d.]+ s, then \d+ tokens/s", printed)


def test_conversation(run):
    variables, printed = run("conversation")
    answers = printed.splitlines()
    assert len(answers) == 4
    assert all(answer.strip() for answer in answers)
    assert [message["role"] for message in variables["answer"].messages] == ["user", "assistant"] * 2


def test_batch(run):
    variables, printed = run("batch")
    assert [line[:3] for line in printed.splitlines()] == ["0: ", "1: ", "2: "]
    alone = pixtral.load(device_map="cpu").chat("What is in the picture?", images=demo_image_path())
    assert printed.splitlines()[1] == f"1: {alone.text}"
    assert variables["inputs"]["pixel_values"].shape[0] == 3


def test_engine(run):
    variables, printed = run("engine")
    assistant = variables["assistant"]
    expected = [assistant.chat(question, images=demo_image_path()).text for question in variables["questions"]]
    assert variables["texts"] == expected
    assert "1 image encoded" in printed
    assert variables["stats"].cached_tokens > 0


def test_every_example_has_a_test_and_is_short():
    for path in EXAMPLES.glob("*.py"):
        if path.stem.startswith("client_"):  # tests/server/test_examples.py runs those
            continue
        assert f"test_{path.stem}" in globals(), f"{path.name} is not tested"
        assert len(path.read_text().splitlines()) <= 55, f"{path.name} is long for an example"
