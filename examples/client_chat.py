"""A question about an image, asked of `pixtral serve` with the openai package.

python examples/client_chat.py [IMAGE [BASE_URL]]
"""

import base64
import os
import sys

from openai import OpenAI

from pixtral.assets import demo_image_path

image, url = (*sys.argv[1:], None, None)[:2]

with open(image or demo_image_path(), "rb") as file:
    image = "data:image/png;base64," + base64.b64encode(file.read()).decode()

client = OpenAI(base_url=url or "http://127.0.0.1:8000/v1", api_key=os.environ.get("PIXTRAL_API_KEY", "none"))
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": image}},
                {"type": "text", "text": "Describe the picture."},
            ],
        }
    ],
    temperature=0,
)
print(answer.choices[0].message.content)
usage = answer.usage
print(f"{usage.prompt_tokens} prompt tokens ({usage.prompt_tokens_details.image_tokens} of them image)")
