"""What is in an image, as an object: `pixtral serve` can say nothing but JSON of this shape.

python examples/client_schema.py [IMAGE [BASE_URL]]
"""

import base64
import os
import sys
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

from pixtral.assets import demo_image_path


class Shape(BaseModel):
    colour: Literal["red", "green", "blue", "yellow", "black", "white"]
    form: Literal["circle", "square", "triangle", "star"]


class Image(BaseModel):
    shapes: tuple[Shape, Shape, Shape]


image, url = (*sys.argv[1:], None, None)[:2]

with open(image or demo_image_path(), "rb") as file:
    data = "data:image/png;base64," + base64.b64encode(file.read()).decode()

client = OpenAI(base_url=url or "http://127.0.0.1:8000/v1", api_key=os.environ.get("PIXTRAL_API_KEY", "none"))
content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": "Describe the picture."}]
answer = client.chat.completions.parse(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": content}],
    response_format=Image,
    temperature=0,
)
for shape in answer.choices[0].message.parsed.shapes:
    print(shape.colour, shape.form)
