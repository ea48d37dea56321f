"""Two images by URL in one question: the first program of Transformers' Pixtral page, only its import line changed.

python examples/two_images.py [MODEL URL_DOG URL_MOUNTAIN]
"""

import sys

from pixtral import AutoProcessor, LlavaForConditionalGeneration

model_id, url_dog, url_mountain = sys.argv[1:] or (
    "mistral-community/pixtral-12b",
    "https://picsum.photos/id/237/200/300",
    "https://picsum.photos/seed/picsum/200/300",
)

model = LlavaForConditionalGeneration.from_pretrained(model_id, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(model_id)

chat = [
    {
        "role": "user",
        "content": [
            {"type": "text", "content": "Can this animal"},
            {"type": "image", "url": url_dog},
            {"type": "text", "content": "live here?"},
            {"type": "image", "url": url_mountain},
        ],
    }
]

inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
generate_ids = model.generate(**inputs, max_new_tokens=500)
output = processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]
print(output)
