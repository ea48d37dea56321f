"""Several prompts at once, with different numbers and sizes of images.

python examples/batch.py [MODEL [IMAGE...]]
"""

import sys

from PIL import Image

from pixtral import AutoProcessor, LlavaForConditionalGeneration
from pixtral.assets import demo_image_path, tiny_path

model_id, *images = sys.argv[1:] or [tiny_path(), demo_image_path()]
first, last = Image.open(images[0]), Image.open(images[-1])

model = LlavaForConditionalGeneration.from_pretrained(model_id)
processor = AutoProcessor.from_pretrained(model_id, padding_side="left")


def user(*parts):
    """A conversation of one message; images as PIL images, text as strings."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


conversations = [
    user("Are you there?"),
    user(first, "What is in the picture?"),
    user(first, last.resize((96, 128)), "How many shapes are there?"),
]
inputs = processor.apply_chat_template(
    conversations, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
).to(model.device)
generated = model.generate(**inputs, max_new_tokens=40)

new = generated[:, inputs["input_ids"].shape[1] :]
for number, text in enumerate(processor.batch_decode(new, skip_special_tokens=True)):
    print(f"{number}: {text}")
