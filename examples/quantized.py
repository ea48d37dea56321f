"""4 bits with bitsandbytes, prompt first, then text and images together: the second program of Transformers' page.

pip install "pixtral[bnb]"
python examples/quantized.py [MODEL DOG_URL MOUNTAIN_URL]
"""

import sys

import requests
import torch
from PIL import Image

from pixtral import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

model_id, dog_url, mountain_url = sys.argv[1:] or (
    "mistral-community/pixtral-12b",
    "https://picsum.photos/id/237/200/300",
    "https://picsum.photos/seed/picsum/200/300",
)

quantization_config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)

model = LlavaForConditionalGeneration.from_pretrained(
    model_id, quantization_config=quantization_config, device_map="auto"
)
processor = AutoProcessor.from_pretrained(model_id)

dog_image = Image.open(requests.get(dog_url, stream=True).raw)
mountain_image = Image.open(requests.get(mountain_url, stream=True).raw)

chat = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Can this animal"},
            {"type": "image"},
            {"type": "text", "text": "live here?"},
            {"type": "image"},
        ],
    }
]

prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
inputs = processor(text=prompt, images=[dog_image, mountain_image], return_tensors="pt")

inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
inputs = {k: v.to(model.device) for k, v in inputs.items()}

generate_ids = model.generate(**inputs, max_new_tokens=100)
output = processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
print(output)
