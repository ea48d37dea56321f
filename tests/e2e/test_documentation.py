"""The quantization program of Transformers' Pixtral page, word for word but for import line, model and addresses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pixtral.assets import tiny_path

PROGRAM = """
import torch
import requests
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, BitsAndBytesConfig

model_id = "mistral-community/pixtral-12b"

quantization_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16
)

model = LlavaForConditionalGeneration.from_pretrained(
    model_id,
    quantization_config=quantization_config,
    device_map="auto"
)
processor = AutoProcessor.from_pretrained(model_id)

dog_url = "https://picsum.photos/id/237/200/300"
mountain_url = "https://picsum.photos/seed/picsum/200/300"
dog_image = Image.open(requests.get(dog_url, stream=True).raw)
mountain_image = Image.open(requests.get(mountain_url, stream=True).raw)

chat = [
    {
      "role": "user", "content": [
        {"type": "text", "text": "Can this animal"},
        {"type": "image"},
        {"type": "text", "text": "live here?"},
        {"type": "image"}
      ]
    }
]

prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
inputs = processor(text=prompt, images=[dog_image, mountain_image], return_tensors="pt")

inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
inputs = {k: v.to(model.device) for k, v in inputs.items()}

generate_ids = model.generate(**inputs, max_new_tokens=100)
output = processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
print(output)
"""


def test_the_program_with_its_import_line_changed(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    text = PROGRAM
    for old, new in (
        ("from transformers import", "from pixtral import"),
        ("mistral-community/pixtral-12b", str(tiny_path())),
        ("https://picsum.photos/id/237/200/300", f"{server}/dog.png"),
        ("https://picsum.photos/seed/picsum/200/300", f"{server}/mountain.png"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    variables: dict[str, Any] = {}
    exec(compile(text, "quantization.py", "exec"), variables)
    model, ids, output = (variables[name] for name in ("model", "generate_ids", "output"))
    linear = {name: type(module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert [name for name, kind in linear.items() if not issubclass(kind, bnb.nn.Linear4bit)] == ["lm_head"]
    assert model.dtype == torch.bfloat16
    assert isinstance(output, list) and len(output) == 1
    answer = output[0].rpartition("live here?")[2].strip()
    assert answer, output
    assert ids.shape[0] == 1
    assert capsys.readouterr().out == f"{output}\n"
